import numpy as np
import pytest
from curve_checks import check_arguments, check_independence, points_of

from keras_maml import episodes
from keras_maml.datasets import harmonic


def test_equals_the_formula():
    x, y = points_of(harmonic(shots=3, queries=4, tasks=50, seed=1, batches=1))
    draws = np.asarray(episodes.uniform(1, np.arange(50), 4))
    gaussian = np.asarray(episodes.normal(1, np.arange(50), 9, first=2**31)).T
    frequency, phase, again, centre = 5 + 2 * draws[0], 2 * np.pi * draws[1], 2 * np.pi * draws[2], -4 + 8 * draws[3]
    expected = centre[:, None] + gaussian[:, 2:]
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    first = gaussian[:, :1] * np.sin(frequency[:, None] * expected + phase[:, None])
    second = gaussian[:, 1:2] * np.sin(2 * frequency[:, None] * expected + again[:, None])
    np.testing.assert_allclose(y, first + second, atol=1e-5)


def test_an_episode_depends_on_its_index_alone():
    check_independence(harmonic)


def test_points_are_normal_about_a_centre():
    x, _ = points_of(harmonic(shots=10, queries=10, tasks=2000, seed=0, batches=1))
    # Of 40,000 normal numbers in 2,000 groups: variance 1 within a group, deviation sqrt(2 / 38,000) = 0.0073, five of
    # them; the means are uniform over 8, variance 64 / 12 + 1 / 20.
    assert abs((x - x.mean(1, keepdims=True)).var() * 20 / 19 - 1) < 0.037
    assert abs(x.mean(1).var() - 64 / 12 - 1 / 20) < 0.6


@pytest.mark.parametrize("name", ["frequency", "phase", "centre"])
def test_errors(name):
    check_arguments(harmonic, name)
