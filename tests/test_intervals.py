"""Intervals and tests against printed tables, exact sums and simulation."""

import math

import numpy as np
import pytest

from keras_maml import intervals


# Rows of the printed tables of Student's t: degrees of freedom, then the quantiles 0.95, 0.975, 0.99 and 0.995.
@pytest.mark.parametrize(
    "degrees, printed",
    [
        (1, (6.314, 12.706, 31.821, 63.657)),
        (2, (2.920, 4.303, 6.965, 9.925)),
        (5, (2.015, 2.571, 3.365, 4.032)),
        (10, (1.812, 2.228, 2.764, 3.169)),
        (30, (1.697, 2.042, 2.457, 2.750)),
        (120, (1.658, 1.980, 2.358, 2.617)),
        (10**7, (1.645, 1.960, 2.326, 2.576)),
    ],
)
def test_quantiles_of_students_t(degrees, printed):
    found = [intervals.t_quantile(probability, degrees) for probability in (0.95, 0.975, 0.99, 0.995)]
    np.testing.assert_allclose(found, printed, atol=5.1e-4)


def test_closed_forms_of_students_t():
    # One degree of freedom is Cauchy: the tail is 1/2 - arctan(t) / pi. Two: 1/2 - t / (2 sqrt(2 + t^2)).
    for t in (0.0, 0.3, 1.0, 7.0, 1e4):
        assert intervals.t_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-12)
        assert intervals.t_tail(t, 2) == pytest.approx(1 / ((2 + t * t) + t * math.sqrt(2 + t * t)), rel=1e-12)
    assert intervals.t_quantile(0.5, 3) == pytest.approx(0, abs=1e-15)


def test_mean_and_margin_by_hand():
    # Mean 2, deviation 1, so 4.303 / sqrt(3) on two degrees of freedom; and at a level of 0.9 it is 2.920 / sqrt(3).
    mean, margin = intervals.mean_and_margin([1, 2, 3])
    assert mean == 2
    assert margin == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert intervals.mean_and_margin([1, 2, 3], level=0.9)[1] == pytest.approx(2.9200 / math.sqrt(3), rel=1e-4)
    assert intervals.mean_and_margin([0.5] * 4) == (0.5, 0.0)
    assert intervals.mean_and_margin([7]) == (7.0, math.inf)
    assert all(map(math.isnan, intervals.mean_and_margin([])))


@pytest.mark.parametrize("above, below", [(0, 1), (5, 5), (1, 9), (9, 1), (0, 20), (30, 31), (250, 350), (600, 0)])
def test_sign_test_against_exact_sums(above, below):
    trials, fewer = above + below, min(above, below)
    exact = sum(math.comb(trials, k) for k in range(fewer + 1)) / 2**trials  # of integers, rounded once
    found = intervals.sign_test(np.array([0.3] * above + [-2.0] * below + [0.0] * 7))
    assert found[:2] == (above, below)
    assert found[2] == pytest.approx(min(1, 2 * exact), rel=1e-11)


def test_sign_test_of_nothing():
    assert intervals.sign_test(np.zeros(5)) == intervals.sign_test([]) == (0, 0, 1.0)
