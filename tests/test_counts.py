import numpy as np
import pytest
import tensorflow as tf
from chi_square import check_uniform

from keras_maml import episodes
from keras_maml.episodes.counts import Count

DRAWS = np.random.default_rng(0).random(60_000)


class TestCount:
    def test_a_number_is_always_the_same(self):
        count = Count("shots", 5, 1)
        assert (count.least, count.greatest, count.fixed) == (5, 5, 5)
        np.testing.assert_array_equal(count(DRAWS[:9]), [5] * 9)

    def test_a_range_is_uniform_with_both_ends(self):
        count = Count("ways", (5, 14), 2)
        drawn = count(DRAWS).numpy()
        assert (count.least, count.greatest, count.fixed) == (5, 14, None)
        assert set(drawn) == set(range(5, 15))
        check_uniform(np.bincount(drawn)[5:])
        # The k-th of ten equal parts of [0, 1).
        np.testing.assert_array_equal(count(np.array([0, 0.0999, 0.1, 0.95, 1 - 2**-53])), [5, 5, 6, 14, 14])

    def test_weights_need_no_order_and_no_sum(self):
        count = Count("shots", {5: 6.0, 1: 2.0, 3: 0.0}, 1)
        # 1 below 2 / 8; 3 has no draw.
        np.testing.assert_array_equal(count(np.array([0, 0.2499, 0.25, 0.9999])), [1, 1, 5, 5])
        assert (count.least, count.greatest) == (1, 5)

    def test_the_shape_of_draws_is_kept(self):
        assert Count("shots", (1, 3), 1)(DRAWS[:12].reshape(3, 4)).shape == (3, 4)

    def test_at_most_and_per_class_read_what_is_in_them(self):
        at_most, per_class = Count("shots", episodes.AtMost(7), 1), Count("shots", episodes.PerClass((1, 3)), 1)
        assert at_most.at_most and at_most.fixed is None and at_most.greatest == 7
        assert per_class.per_class and per_class.greatest == 3

    @pytest.mark.parametrize(
        "value, message",
        [
            (0, "`shots` must be an integer of at least 1. Received: shots=0."),
            (1.5, r"`shots` must be an integer of at least 1, \(least, greatest\), or a dict"),
            ((0, 3), r"`shots\[0\]` must be an integer of at least 1"),
            ((4, 3), r"`shots\[1\]` must be an integer of at least 4. Received: shots\[1\]=3"),
            ((1, 2, 3), r"Received: shots=\(1, 2, 3\)"),
            ({}, r"Received: shots=\{\}"),
            ({0: 1.0}, "a number in shots=0"),
            ({1: -1.0, 2: 2.0}, "Weights in `shots` must be finite, 0 or more"),
            ({1: 0.0}, "not all 0"),
            ({1: float("nan")}, "must be finite"),
            ("5", "Received: shots='5'"),
        ],
    )
    def test_errors(self, value, message):
        with pytest.raises(ValueError, match=message):
            Count("shots", value, 1)

    def test_ways_are_no_property_of_a_class(self):
        with pytest.raises(ValueError, match="`ways` must be"):
            Count("ways", episodes.PerClass(5), 2, per_class=False)
        with pytest.raises(ValueError, match="`ways` must be"):
            Count("ways", episodes.AtMost(5), 2, per_class=False)


def meta_dataset_numbers(draws, sizes, queries, total, cap):
    """Section 3.2 of Triantafillou et al. 2020 for one episode, class by class, in Python."""
    ways = len(sizes)
    queries = min(queries, min(size // 2 for size in sizes))
    beta = 1 - draws[0][0]
    asked = sum(int(np.ceil(beta * min(cap, size - queries))) for size in sizes)
    total = min(total, asked)
    alphas = [np.log(0.5) + u * (np.log(2) - np.log(0.5)) for _, u in draws]
    weights = [np.exp(alpha) * size for alpha, size in zip(alphas, sizes, strict=True)]
    shares = [weight / sum(weights) for weight in weights]
    shots = [min(int(r * (total - ways)) + 1, size - queries) for r, size in zip(shares, sizes, strict=True)]
    return shots, queries


class TestImbalancedShots:
    def test_equals_the_paper(self):
        random = np.random.default_rng(1)
        rule = episodes.ImbalancedShots(total=60, cap=10)
        draws = random.random((200, 8, 2))
        sizes = random.integers(2, 40, (200, 8))
        ways = random.integers(2, 9, 200)
        sizes[np.arange(8) >= ways[:, None]] = 0
        asked = np.where(sizes > 0, 10, 0)
        shots, queries = rule(tf.constant(draws), tf.constant(sizes), tf.constant(asked))
        for i in range(200):
            n = ways[i]
            expected, each = meta_dataset_numbers(draws[i, :n], sizes[i, :n].tolist(), 10, 60, 10)
            np.testing.assert_array_equal(shots[i], expected + [0] * (8 - n))
            np.testing.assert_array_equal(queries[i], [each] * n + [0] * (8 - n))

    def test_no_total_is_passed(self):
        random = np.random.default_rng(2)
        shots, _ = episodes.ImbalancedShots(total=30)(
            tf.constant(random.random((500, 6, 2))),
            tf.constant(random.integers(50, 1000, (500, 6))),
            tf.constant(np.full((500, 6), 10)),
        )
        totals = shots.numpy().sum(1)
        assert totals.max() <= 30 and totals.min() >= 6
        assert shots.numpy().min() >= 1

    def test_errors(self):
        with pytest.raises(ValueError, match="`total` must be"):
            episodes.ImbalancedShots(total=0)
        with pytest.raises(ValueError, match="`cap` must be"):
            episodes.ImbalancedShots(cap=0)
