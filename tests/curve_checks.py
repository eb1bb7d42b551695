"""What every family of curves keeps to."""

import numpy as np
import pytest

from keras_maml import episodes


def points_of(dataset):
    """`(x, y)` of the first batch, `(T, S + Q)` each, supports first."""
    x, y = next(iter(dataset))
    return np.concatenate([x["support_x"], x["query_x"]], 1)[..., 0], np.concatenate([x["support_y"], y], 1)[..., 0]


def check_independence(family, rounding=0.0):
    """An episode does not depend on its batch; its supports do not depend on queries; noise changes y alone."""
    arguments = {"shots": 3, "queries": 4, "seed": 5}
    whole = points_of(family(tasks=12, batches=1, **arguments))
    for part in (family(tasks=5, start=4, batches=1, **arguments), family(tasks=1, start=9, **arguments)):
        got = points_of(part)
        begin = 4 if len(got[0]) == 5 else 9
        for one, other in zip(got, whole, strict=True):
            np.testing.assert_allclose(one, other[begin : begin + len(one)], atol=rounding, rtol=0)
    sharded = points_of(family(tasks=3, shard=(1, 2), **arguments))
    np.testing.assert_allclose(sharded[1], whole[1][3:6], atol=rounding, rtol=0)
    many = points_of(family(tasks=12, batches=1, shots=3, queries=9, seed=5))
    for one, other in zip(many, whole, strict=True):
        np.testing.assert_allclose(one[:, :3], other[:, :3], atol=rounding, rtol=0)
    large = {"tasks": 2000, "batches": 1, "shots": 5, "queries": 5, "seed": 0}
    still, noisy = points_of(family(noise=0, **large)), points_of(family(noise=0.5, **large))
    np.testing.assert_array_equal(still[0], noisy[0])
    added = noisy[1] - still[1]
    # Of 20,000 normal numbers: the mean has a deviation of 0.5 / 141, the standard deviation of 0.5 / 200; six of them.
    assert abs(added.mean()) < 0.022 and abs(added.std() - 0.5) < 0.015
    fixed = family(tasks=3, seed=episodes.fixed(12))
    assert len(fixed) == 4


def check_arguments(family, name):
    """A range must be a range, and counts and noise be in theirs."""
    for wrong in ((1.0,), (2.0, 1.0), (0.1, float("inf")), 3.0, (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=f"`{name}` must be .least, greatest., finite numbers"):
            family(**{name: wrong})
    for argument, wrong in (("shots", 0), ("queries", 0), ("noise", -1.0), ("tasks", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"`{argument}` must be"):
            family(**{argument: wrong})
