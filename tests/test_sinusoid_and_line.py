import numpy as np
import pytest
from chi_square import check_uniform
from curve_checks import check_arguments, check_independence, points_of

from keras_maml import episodes
from keras_maml.datasets import sinusoid_and_line


def kinds(x, y):
    """Whether an episode is a line: by the residual of a straight line through its points."""
    lines = []
    for a, b in zip(x, y, strict=True):
        design = np.stack([a, np.ones_like(a)], 1)
        lines.append(np.abs(design @ np.linalg.lstsq(design, b, rcond=None)[0] - b).max() < 1e-4)
    return np.array(lines)


def test_equals_the_formulas():
    x, y = points_of(sinusoid_and_line(shots=5, queries=4, tasks=200, seed=1, batches=1, noise=0))
    draws = np.asarray(episodes.uniform(1, np.arange(200), 14)).T[..., None]
    line = draws[:, 0, 0] < 0.5
    expected = np.where(
        line[:, None],
        (-3 + 6 * draws[:, 3]) * x - 3 + 6 * draws[:, 4],
        (0.1 + 4.9 * draws[:, 1]) * np.sin(x - np.pi * draws[:, 2]),
    )
    np.testing.assert_allclose(x, -5 + 10 * draws[:, 5:, 0], atol=1e-6)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    assert 60 < line.sum() < 140


def test_shares_of_the_kinds():
    x, y = points_of(sinusoid_and_line(shots=10, queries=10, tasks=3000, seed=0, batches=1, noise=0, lines=0.25))
    line = kinds(x, y)
    check_uniform([3 * line.sum(), (~line).sum()])
    for share in (0, 1):
        x, y = points_of(sinusoid_and_line(shots=10, queries=10, tasks=50, seed=0, batches=1, noise=0, lines=share))
        assert (kinds(x, y) == bool(share)).all()


def test_an_episode_depends_on_its_index_alone():
    check_independence(sinusoid_and_line)


@pytest.mark.parametrize("name", ["amplitude", "phase", "slope", "intercept", "x_range"])
def test_errors(name):
    check_arguments(sinusoid_and_line, name)
    with pytest.raises(ValueError, match="`lines` must be a number from 0 to 1. Received: lines=1.5"):
        sinusoid_and_line(lines=1.5)
