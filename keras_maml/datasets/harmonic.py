"""Sums of a sine wave and one of twice its frequency, seen through a window of their own."""

import math

import tensorflow as tf

from keras_maml import episodes
from keras_maml.datasets.curves import check_ranges, curve_episodes, scale

# Draws of an episode from here on are Gaussian, two uniform ones each: amplitudes, then points.
GAUSSIAN = 2**31


def harmonic(
    shots=10,
    queries=10,
    tasks=25,
    seed=None,
    batches=None,
    start=0,
    noise=0.0,
    frequency=(5.0, 7.0),
    phase=(0.0, 2 * math.pi),
    centre=(-4.0, 4.0),
    shard=None,
):
    """Episodes of regression on harmonics, one curve a task.

        y = a_1 sin(frequency * x + phase_1) + a_2 sin(2 * frequency * x + phase_2) + noise * normal
        a_1, a_2 ~ N(0, 1)        x ~ N(centre, 1)

    Frequency, phases and centre are uniform. A few points do not tell the curve, so this is a problem of uncertainty.

    Args:
        shots: support points a task, `S`, at least 1.
        queries: query points a task, `Q`, at least 1.
        tasks: episodes a batch, `T`, at least 1.
        seed: see `keras_maml.episodes.from_function`, and so `batches`, `start` and `shard`.
        noise: standard deviation of the Gaussian noise on every `y`, 0 or more.
        frequency: `(least, greatest)`, radians a unit of x.
        phase: `(least, greatest)`, radians.
        centre: `(least, greatest)` mean of a task's x.

    Returns:
        A `tf.data.Dataset`, see `keras_maml.datasets.sinusoid`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Lacoste et al. 2018, "Uncertainty in multitask transfer learning", arXiv:1806.07528; ranges as in Deleu et al.
          2019, "Torchmeta: A meta-learning library for PyTorch", arXiv:1909.06576
    """
    check_ranges(frequency=frequency, phase=phase, centre=centre)

    def draw(seed, index, points):
        draws = tf.transpose(episodes.uniform(seed, index, 4))
        gaussian = tf.transpose(episodes.normal(seed, index, 2 + points, first=GAUSSIAN))
        x = scale(draws[:, 3:], centre) + gaussian[:, 2:]
        angle = scale(draws[:, :1], frequency) * x
        first = gaussian[:, :1] * tf.sin(angle + scale(draws[:, 1:2], phase))
        return x, first + gaussian[:, 1:2] * tf.sin(2 * angle + scale(draws[:, 2:3], phase))

    arguments = {"seed": seed, "batches": batches, "start": start, "shard": shard}
    return curve_episodes(draw, shots, queries, noise, tasks, block=8, **arguments)
