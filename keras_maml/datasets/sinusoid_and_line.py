"""Sine waves and straight lines: tasks of two kinds, which a learner must tell apart from the supports."""

import math
import numbers

import tensorflow as tf

from keras_maml import episodes
from keras_maml.datasets.curves import check_ranges, curve_episodes, scale


def sinusoid_and_line(
    shots=10,
    queries=10,
    tasks=25,
    seed=None,
    batches=None,
    start=0,
    noise=0.3,
    lines=0.5,
    amplitude=(0.1, 5.0),
    phase=(0.0, math.pi),
    slope=(-3.0, 3.0),
    intercept=(-3.0, 3.0),
    x_range=(-5.0, 5.0),
    shard=None,
):
    """Episodes of regression of which each is a sine wave or a line.

        y = amplitude * sin(x - phase) + noise * normal          or          y = slope * x + intercept + noise * normal

    All is uniform within its range. To know which kind an episode is, mix `sinusoid` with lines of your own by
    `keras_maml.episodes.mixture`.

    Args:
        shots: support points a task, `S`, at least 1.
        queries: query points a task, `Q`, at least 1.
        tasks: episodes a batch, `T`, at least 1.
        seed: see `keras_maml.episodes.from_function`, and so `batches`, `start` and `shard`.
        noise: standard deviation of the Gaussian noise on every `y`, 0 or more.
        lines: share of lines, from 0 to 1.
        amplitude: `(least, greatest)`.
        phase: `(least, greatest)`, radians.
        slope: `(least, greatest)`.
        intercept: `(least, greatest)`.
        x_range: `(least, greatest)`.

    Returns:
        A `tf.data.Dataset`, see `keras_maml.datasets.sinusoid`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Finn et al. 2018, "Probabilistic model-agnostic meta-learning", section 5, arXiv:1806.02817
    """
    check_ranges(amplitude=amplitude, phase=phase, slope=slope, intercept=intercept, x_range=x_range)
    if not isinstance(lines, numbers.Real) or not 0 <= lines <= 1:
        raise ValueError(f"`lines` must be a number from 0 to 1. Received: lines={lines!r}.")

    def draw(seed, index, points):
        draws = tf.transpose(episodes.uniform(seed, index, 5 + points))
        x = scale(draws[:, 5:], x_range)
        wave = scale(draws[:, 1:2], amplitude) * tf.sin(x - scale(draws[:, 2:3], phase))
        line = scale(draws[:, 3:4], slope) * x + scale(draws[:, 4:5], intercept)
        return x, tf.where(draws[:, :1] < lines, line, wave)

    arguments = {"seed": seed, "batches": batches, "start": start, "shard": shard}
    return curve_episodes(draw, shots, queries, noise, tasks, block=8, **arguments)
