"""Sine waves of random amplitude and phase: the regression problem of the MAML paper."""

import math

import tensorflow as tf

from keras_maml import episodes
from keras_maml.datasets.curves import check_ranges, curve_episodes, scale


def sinusoid(
    shots=10,
    queries=10,
    tasks=25,
    seed=None,
    batches=None,
    start=0,
    noise=0.0,
    amplitude=(0.1, 5.0),
    phase=(0.0, math.pi),
    x_range=(-5.0, 5.0),
    shard=None,
):
    """Episodes of regression on sine waves, one wave a task.

        y = amplitude * sin(x - phase) + noise * normal

    Amplitude, phase and every `x` are uniform; support and query points are drawn independently.
    The wave and the support points of an episode do not depend on `queries`, nor on `noise`.
    Waves larger than those of training, to test on, are `amplitude=(5.0, 10.0)`.

    Args:
        shots: support points a task, `S`, at least 1.
        queries: query points a task, `Q`, at least 1.
        tasks: episodes a batch, `T`, at least 1.
        seed: see `keras_maml.episodes.from_function`, and so `batches`, `start` and `shard`.
        noise: standard deviation of the Gaussian noise on every `y`, 0 or more.
        amplitude: `(least, greatest)`.
        phase: `(least, greatest)`, radians.
        x_range: `(least, greatest)`.

    Returns:
        A `tf.data.Dataset` of `({"support_x": (T, S, 1), "support_y": (T, S, 1), "query_x": (T, Q, 1)}, query_y:
        (T, Q, 1))`, all `float32`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks",
          section 5.1, arXiv:1703.03400
    """
    check_ranges(amplitude=amplitude, phase=phase, x_range=x_range)

    def draw(seed, index, points):
        draws = tf.transpose(episodes.uniform(seed, index, 2 + points))
        x = scale(draws[:, 2:], x_range)
        return x, scale(draws[:, :1], amplitude) * tf.sin(x - scale(draws[:, 1:2], phase))

    arguments = {"seed": seed, "batches": batches, "start": start, "shard": shard}
    return curve_episodes(draw, shots, queries, noise, tasks, block=8, **arguments)
