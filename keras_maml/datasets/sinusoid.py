"""Sine waves of random amplitude and phase: the regression problem of the MAML paper."""

import math
import numbers

import tensorflow as tf

from keras_maml import episodes

# Draws of an episode from here on make the noise, so that it changes neither waves nor points.
NOISE = 2**32


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
        seed: see `keras_maml.episodes.from_arrays`, and so `batches` and `start`.
        noise: standard deviation of the Gaussian noise on every `y`, 0 or more.
        amplitude: `(least, greatest)`.
        phase: `(least, greatest)`, radians.
        x_range: `(least, greatest)`.

    Returns:
        A `tf.data.Dataset` of `({"support_x": (T, S, 1), "support_y": (T, S, 1), "query_x":
        (T, Q, 1)}, query_y: (T, Q, 1))`, all `float32`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks",
          section 5.1, arXiv:1703.03400
    """
    episodes.check_whole(1, shots=shots, queries=queries)
    _check_ranges(amplitude=amplitude, phase=phase, x_range=x_range)
    if not isinstance(noise, numbers.Real) or not 0 <= noise < math.inf:
        raise ValueError(f"`noise` must be a number of at least 0. Received: noise={noise!r}.")
    points = shots + queries

    def waves(seed, index):
        # In float64 to the last step: tails of vectorised float32 kernels may round otherwise, and
        # an episode must not depend on its place in a batch.
        draws = tf.transpose(episodes.uniform(seed, index, 2 + points))
        height = _scale(draws[:, :1], amplitude)
        shift = _scale(draws[:, 1:2], phase)
        x = _scale(draws[:, 2:], x_range)
        y = height * tf.sin(x - shift)
        if noise:
            y += noise * _normal(seed, index, points)
        x, y = (tf.cast(values, tf.float32)[..., None] for values in (x, y))
        return {
            "support_x": x[:, :shots],
            "support_y": y[:, :shots],
            "query_x": x[:, shots:],
        }, y[:, shots:]

    return episodes.from_function(waves, tasks, seed, batches, start, block=8)


def _scale(draws, limits):
    least, greatest = limits
    return least + (greatest - least) * draws


def _normal(seed, index, points):
    """Standard normal numbers `(T, points)`, by Box and Muller."""
    draws = tf.transpose(episodes.uniform(seed, index, 2 * points, first=NOISE))
    radius = tf.sqrt(-2 * tf.math.log1p(-draws[:, ::2]))  # 1 - u: log of 0 would be infinite
    return radius * tf.cos(2 * math.pi * draws[:, 1::2])


def _check_ranges(**ranges):
    for name, limits in ranges.items():
        values = tuple(limits) if isinstance(limits, tuple | list) else ()
        if len(values) != 2 or not -math.inf < values[0] <= values[1] < math.inf:
            raise ValueError(
                f"`{name}` must be (least, greatest), finite numbers. Received: {name}={limits!r}."
            )
