import numpy as np
import pytest
import tensorflow as tf
from curve_checks import check_arguments, check_independence, points_of

from keras_maml import episodes
from keras_maml.datasets import curves


def parabolas(shots=3, queries=4, tasks=5, noise=0.0, limits=(1.0, 2.0), **arguments):
    """y = a x**2: a family as short as they come."""
    curves.check_ranges(limits=limits)

    def draw(seed, index, points):
        draws = tf.transpose(episodes.uniform(seed, index, 1 + points))
        x = draws[:, 1:]
        return x, curves.scale(draws[:, :1], limits) * x**2

    return curves.curve_episodes(draw, shots, queries, noise, tasks, **arguments)


def test_supports_come_first():
    x, y = next(iter(parabolas(seed=0)))
    assert x["support_x"].shape == x["support_y"].shape == (5, 3, 1) and y.shape == (5, 4, 1)
    assert x["support_x"].dtype == y.dtype == tf.float32
    draws = np.asarray(episodes.uniform(0, np.arange(5), 8)).T
    points, values = points_of(parabolas(seed=0))
    np.testing.assert_allclose(points, draws[:, 1:], rtol=1e-6)
    np.testing.assert_allclose(values, (1 + draws[:, :1]) * draws[:, 1:] ** 2, rtol=1e-6)


def test_an_episode_depends_on_its_index_alone():
    check_independence(parabolas)


def test_errors():
    check_arguments(parabolas, "limits")
    with pytest.raises(ValueError, match="`scale` must be .least, greatest., finite numbers above 0"):
        curves.check_ranges(above=0, scale=(0.0, 1.0))
