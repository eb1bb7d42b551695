"""Functions drawn from Gaussian processes: the regression problem of neural processes."""

import math

import tensorflow as tf

from keras_maml import episodes
from keras_maml.datasets.curves import check_ranges, curve_episodes, scale

# Draws of an episode from here on are the Gaussian ones of function values.
VALUES = 2**31
# Share of the variance added on the diagonal: without it rounding makes points that are close to each other fail.
JITTER = 1e-6
PERIOD = 1.0


def _rbf(distance, length_scale):
    return tf.exp(-0.5 * tf.square(distance / length_scale))


def _matern52(distance, length_scale):
    # Beyond 1,000 the exponential is 0; an infinite square times 0 would be NaN.
    scaled = tf.minimum(math.sqrt(5) * distance / length_scale, 1e3)
    return (1 + scaled + tf.square(scaled) / 3) * tf.exp(-scaled)


def _periodic(distance, length_scale):
    return tf.exp(-2 * tf.square(tf.sin(math.pi * distance / PERIOD) / length_scale))


KERNELS = {"rbf": _rbf, "matern52": _matern52, "periodic": _periodic}


def gaussian_process(
    shots=10,
    queries=10,
    tasks=16,
    seed=None,
    batches=None,
    start=0,
    noise=0.02,
    kernel="rbf",
    length_scale=(0.1, 0.6),
    output_scale=(0.1, 1.0),
    x_range=(-2.0, 2.0),
    shard=None,
):
    """Episodes of regression on functions of a Gaussian process, with a kernel of its own for each task.

        y ~ N(0, output_scale**2 * k(|x - x'| / length_scale)) + noise * normal

        "rbf"       k(d / l) = exp(-(d / l)**2 / 2)
        "matern52"  k(d / l) = (1 + a + a**2 / 3) exp(-a),  a = sqrt(5) d / l
        "periodic"  k(d, l)  = exp(-2 sin(pi d)**2 / l**2), of period 1

    Both scales and every x are uniform. Values at supports and queries are drawn together, in float64, by a Cholesky
    factor whose first rows belong to the supports: up to rounding, these do not depend on `queries`. A share of 1e-6 of
    the variance is added on the diagonal.

    Args:
        shots: support points a task, `S`, at least 1.
        queries: query points a task, `Q`, at least 1. The work grows with `(shots + queries)**3`.
        tasks: episodes a batch, `T`, at least 1.
        seed: see `keras_maml.episodes.from_function`, and so `batches`, `start` and `shard`.
        noise: standard deviation of the Gaussian noise on every `y`, 0 or more.
        kernel: `"rbf"`, `"matern52"` or `"periodic"`.
        length_scale: `(least, greatest)`, above 0.
        output_scale: `(least, greatest)` standard deviation of the values, above 0.
        x_range: `(least, greatest)`.

    Returns:
        A `tf.data.Dataset`, see `keras_maml.datasets.sinusoid`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Garnelo et al. 2018, "Neural processes", arXiv:1807.01622
        - Kim et al. 2019, "Attentive neural processes", arXiv:1901.05761 (the default ranges)
    """
    if kernel not in KERNELS:
        raise ValueError(f"`kernel` must be one of {list(KERNELS)}. Received: kernel={kernel!r}.")
    check_ranges(x_range=x_range)
    check_ranges(above=0, length_scale=length_scale, output_scale=output_scale)

    def draw(seed, index, points):
        draws = tf.transpose(episodes.uniform(seed, index, 2 + points))
        x = scale(draws[:, 2:], x_range)
        distance = tf.abs(x[:, :, None] - x[:, None])
        covariance = KERNELS[kernel](distance, scale(draws[:, :1, None], length_scale))
        factor = tf.linalg.cholesky(covariance + JITTER * tf.eye(points, dtype=tf.float64))
        values = tf.transpose(episodes.normal(seed, index, points, first=VALUES))
        return x, scale(draws[:, 1:2], output_scale) * tf.linalg.matvec(factor, values)

    arguments = {"seed": seed, "batches": batches, "start": start, "shard": shard}
    return curve_episodes(draw, shots, queries, noise, tasks, **arguments)
