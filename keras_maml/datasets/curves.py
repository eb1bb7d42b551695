"""What families of curves have in common: ranges, noise, and episodes of points."""

import math

import tensorflow as tf

from keras_maml import episodes
from keras_maml.arguments import check_not_negative, check_whole

# Draws of an episode from here on make the noise, so that it changes neither curves nor points.
NOISE = 2**32


def curve_episodes(draw, shots, queries, noise, tasks, **arguments):
    """Episodes of points on curves.

    Everything is in float64 to the last step: tails of vectorised float32 kernels may round otherwise, and an episode
    must not depend on its place in a batch.

    Args:
        draw: `(seed, index, points) -> (x, y)`, `(T, points)` `float64` each, without noise; what it makes of the first
            points must not depend on how many there are.
        shots: support points a task, `S`, at least 1.
        queries: query points a task, `Q`, at least 1.
        noise: standard deviation of the Gaussian noise on every `y`, 0 or more.
        tasks: see `keras_maml.episodes.from_function`, and so the other arguments.

    Returns:
        A `tf.data.Dataset` of `({"support_x": (T, S, 1), "support_y": (T, S, 1), "query_x": (T, Q, 1)}, query_y:
        (T, Q, 1))`, all `float32`.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_whole(1, shots=shots, queries=queries)
    check_not_negative("noise", noise)
    points = shots + queries

    def episode(seed, index):
        x, y = draw(seed, index, points)
        if noise:
            y += noise * tf.transpose(episodes.normal(seed, index, points, first=NOISE))
        x, y = (tf.cast(values, tf.float32)[..., None] for values in (x, y))
        return {"support_x": x[:, :shots], "support_y": y[:, :shots], "query_x": x[:, shots:]}, y[:, shots:]

    return episodes.from_function(episode, tasks, **arguments)


def scale(draws, limits):
    """Uniform draws in `[0, 1)` as uniform numbers in `limits`."""
    least, greatest = limits
    return least + (greatest - least) * draws


def check_ranges(above=-math.inf, **ranges):
    """Raises `ValueError` unless each of the named ranges is `(least, greatest)`, finite and greater than `above`."""
    for name, limits in ranges.items():
        values = tuple(limits) if isinstance(limits, tuple | list) else ()
        if len(values) != 2 or not above < values[0] <= values[1] < math.inf:
            bound = "" if above == -math.inf else f" above {above}"
            raise ValueError(
                f"`{name}` must be (least, greatest), finite numbers{bound}. Received: {name}={limits!r}."
            )
