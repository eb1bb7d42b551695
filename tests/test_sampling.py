"""Which rows make an episode: what a sampler promises, over many episodes."""

import numpy as np
import pytest
import tensorflow as tf
from chi_square import check_uniform

from keras_maml import episodes
from keras_maml.episodes.sampling import Classes, check_numbers, sampler

SIZES = np.array([4, 30, 7, 12, 9, 20, 5, 16, 6, 11])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), SIZES))


def drawn(count, ways, shots, queries, within=None, labels=LABELS, classes=None, ordered=False):
    """What a sampler draws for the first episodes, as NumPy arrays."""
    chosen = sampler(Classes(labels, within, classes), *check_numbers(ways, shots, queries), ordered)
    result = tf.function(chosen.draw)(tf.constant(0, tf.int64), tf.range(count, dtype=tf.int64))
    result = {key: value.numpy() for key, value in result.items()}
    for part in ("support", "query"):
        if f"{part}_y" not in result:
            result[f"{part}_y"] = chosen.labels(result, part).numpy()
            result[f"{part}_weight"] = np.ones(result[part].shape, "float32")
    return result


def distinct(*columns):
    """How many different rows columns of whole numbers of at least 0 make."""
    return len(np.unique(np.ravel_multi_index(columns, [column.max() + 1 for column in columns])))


def check_promises(result, labels=LABELS):
    """Every episode: no example twice, one class a label, labels 0 to ways - 1 sorted and in front of the padding."""
    rows = np.concatenate([result["support"], result["query"]], 1)
    inside = np.concatenate([result["support_y"], result["query_y"]], 1)
    real = np.concatenate([result["support_weight"], result["query_weight"]], 1) > 0
    episode = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    assert distinct(episode[real], rows[real]) == real.sum()
    ways = np.where(real, inside, 0).max(1) + 1
    classes = labels[rows[real]]
    # Each label of each episode stands for one class, and none is left out; and no class has two labels.
    assert distinct(episode[real], inside[real], classes) == distinct(episode[real], classes) == ways.sum()
    for part in ("support", "query"):
        y, weight = result[f"{part}_y"], result[f"{part}_weight"]
        assert set(np.unique(weight)) <= {0.0, 1.0}
        assert (np.diff(weight, axis=1) <= 0).all()
        assert (y[weight == 0] == 0).all()
        assert (np.diff(np.where(weight > 0, y, 99), axis=1) >= 0).all()
        assert (np.where(weight > 0, y, 0).max(1) + 1 == ways).all()
    return ways


def per_class(result, part, ways):
    """Examples of every class of every episode, `(T, ways)`."""
    y = np.where(result[f"{part}_weight"] > 0, result[f"{part}_y"], -1)
    return np.stack([(y == label).sum(1) for label in range(ways)], 1)


@pytest.mark.parametrize(
    "ways, shots, queries",
    [
        (3, 1, 3),
        ((2, 6), 2, 2),
        (4, (1, 2), 1),
        (2, episodes.PerClass((1, 2)), episodes.AtMost(9)),
        ({2: 1, 9: 3}, episodes.AtMost(6), 1),
        ((2, 10), episodes.ImbalancedShots(total=20), 3),
    ],
)
def test_no_query_is_in_its_support_in_100000_episodes(ways, shots, queries):
    check_promises(drawn(100_000, ways, shots, queries))


def test_ways_are_uniform_and_classes_too():
    result = drawn(20_000, (2, 6), 1, 1)
    ways = check_promises(result)
    check_uniform(np.bincount(ways)[2:])
    first = LABELS[result["support"][:, 0]]
    check_uniform(np.bincount(first, minlength=10))


def test_examples_of_a_class_are_uniform_where_numbers_vary():
    result = drawn(40_000, (2, 4), episodes.PerClass((1, 2)), (1, 2))
    for part in ("support", "query"):
        rows = result[part][result[f"{part}_weight"] > 0]
        for label in range(10):
            counts = np.bincount(rows, minlength=len(LABELS))[label == LABELS]
            # Draws without replacement spread more evenly than the chi-square of independent ones: only the upper
            # bound of `check_uniform` holds, d + 2 sqrt(d t) + 2 t at t = 20.
            statistic = ((counts - counts.mean()) ** 2).sum() / counts.mean()
            d = counts.size - 1
            assert statistic <= d + 2 * np.sqrt(20 * d) + 40


def test_numbers_of_a_task_are_shared_by_its_classes_and_those_of_a_class_are_not():
    shared = per_class(drawn(6000, 3, (1, 3), 1), "support", 3)
    assert (shared == shared[:, :1]).all()
    check_uniform(np.bincount(shared[:, 0])[1:])
    own = per_class(drawn(6000, 3, episodes.PerClass((1, 3)), 1), "support", 3)
    check_uniform(np.bincount((own - 1) @ [9, 3, 1], minlength=27))  # 27 combinations, all as likely


def test_at_most_takes_what_there_is():
    result = drawn(2000, 3, episodes.AtMost(8), episodes.AtMost(10))
    check_promises(result)
    support, query = per_class(result, "support", 3), per_class(result, "query", 3)
    first = result["support"][np.arange(2000)[:, None], np.cumsum(support, 1) - support]
    sizes = SIZES[LABELS[first]]
    np.testing.assert_array_equal(support, np.minimum(8, sizes - 1))
    np.testing.assert_array_equal(query, np.minimum(10, sizes - support))


def test_imbalanced_totals_are_what_the_sampler_promises():
    result = drawn(3000, (2, 10), episodes.ImbalancedShots(total=40), 10)
    ways = check_promises(result)
    support, query = per_class(result, "support", 10), per_class(result, "query", 10)
    assert support.sum(1).max() <= 40 and result["support"].shape[1] == 40
    present = np.arange(10) < ways[:, None]
    assert (support[present] >= 1).all() and (query[present] >= 1).all()
    first = result["support"][np.arange(3000)[:, None], np.minimum(np.cumsum(support, 1) - support, 39)]
    sizes = np.where(present, SIZES[LABELS[first]], 10**6)
    expected = np.minimum(10, sizes.min(1) // 2)
    np.testing.assert_array_equal(np.where(present, query, expected[:, None]), np.repeat(expected[:, None], 10, 1))


def test_supports_do_not_change_with_queries():
    few, many = (drawn(200, (2, 4), (1, 2), queries) for queries in (1, 2))
    np.testing.assert_array_equal(few["support"], many["support"])


def test_an_episode_does_not_depend_on_its_batch():
    chosen = sampler(Classes(LABELS), *check_numbers((2, 5), episodes.PerClass((1, 2)), (1, 2)))
    seed = tf.constant(3, tf.int64)
    whole = chosen.draw(seed, tf.range(12, dtype=tf.int64))
    one = chosen.draw(seed, tf.constant([7], tf.int64))
    for key, value in one.items():
        np.testing.assert_array_equal(value[0], whole[key][7])


def test_ordered_examples_keep_their_order_and_stay_uniform():
    labels = np.repeat([0, 1], [5, 8])
    for shots in (2, (2, 3)):
        result = drawn(4000, 2, shots, 1, labels=labels, ordered=True)
        check_promises(result, labels)
        rows = np.where(result["support_weight"] > 0, result["support"], -1)
        for label in (0, 1):
            last_support = np.where(result["support_y"] == label, rows, -1).max(1)
            query = result["query"][:, label]
            assert (last_support < query).all()
    pairs = drawn(6000, 2, 1, 1, labels=labels, ordered=True)
    first = labels[pairs["support"][:, 0]] == 0
    support = np.where(first, pairs["support"][:, 0], pairs["support"][:, 1])
    query = np.where(first, pairs["query"][:, 0], pairs["query"][:, 1])
    seen = np.bincount(support * 5 + query, minlength=25)
    check_uniform([seen[i * 5 + j] for i in range(5) for j in range(i + 1, 5)])


class TestWithin:
    SUPERCLASS = np.array(["a", "b", "a", "b", "b", "c", "b", "c", "c", "c"])[LABELS]

    def test_all_classes_of_an_episode_are_of_one_superclass(self):
        for ways in (2, (2, 4)):
            result = drawn(5000, ways, 1, 1, within=self.SUPERCLASS)
            found = check_promises(result)
            names = np.where(result["support_weight"] > 0, self.SUPERCLASS[result["support"]], "")
            first = names[:, :1]
            assert ((names == first) | (names == "")).all()
            check_uniform(np.unique(first, return_counts=True)[1])
            if ways != 2:  # a range ends at the number of classes that the superclass has
                check_uniform(np.bincount(found[first[:, 0] == "b"])[2:])
                assert set(found[first[:, 0] == "a"]) == {2} and set(found[first[:, 0] == "b"]) == {2, 3, 4}
                classes = LABELS[result["support"][first[:, 0] == "b", 0]]
                check_uniform(np.bincount(classes)[[1, 3, 4, 6]])

    def test_a_class_in_two_superclasses_is_refused(self):
        within = self.SUPERCLASS.copy()
        row = np.flatnonzero(LABELS == 3)[-1]
        within[row] = "c"
        with pytest.raises(ValueError, match="label 3 within 'b' and within 'c'.*numpy.char.add"):
            Classes(LABELS, within)

    def test_superclasses_with_too_few_classes_are_named(self):
        with pytest.raises(ValueError, match=r"Superclass 'a' of `within` has 2 classes, ways=3 are needed \(1 of 3"):
            drawn(1, 3, 1, 1, within=self.SUPERCLASS)
        with pytest.raises(ValueError, match="ways=5 classes. Received: 10 classes, at most 4 within a superclass"):
            drawn(1, (2, 5), 1, 1, within=self.SUPERCLASS)


class TestClasses:
    def test_only_classes_that_are_asked_for_are_drawn(self):
        result = drawn(500, (2, 3), 1, 1, classes=[7, 1, 4, 4])
        rows = result["support"][result["support_weight"] > 0]
        assert set(LABELS[rows]) == {1, 4, 7}

    def test_errors(self):
        with pytest.raises(ValueError, match="2 classes, of which 1 do not occur, such as 99"):
            Classes(LABELS, classes=[1, 99])
        with pytest.raises(ValueError, match="Received: 0 classes"):
            Classes(LABELS, classes=[])
        with pytest.raises(ValueError, match="ways=4 classes. Received: 3 classes"):
            drawn(1, 4, 1, 1, classes=[1, 4, 7])
        with pytest.raises(ValueError, match=r"label 0 has 4 examples, the greatest shots \+ queries needs 5"):
            drawn(1, (2, 3), 2, 3)
        with pytest.raises(ValueError, match="3 supports in all, fewer than the 4 ways"):
            drawn(1, 4, episodes.ImbalancedShots(total=3), 5)
        with pytest.raises(ValueError, match="label 1 has 1 example, one support and one query needs 2"):
            drawn(1, 2, episodes.ImbalancedShots(), 5, labels=[0, 0, 1, 2, 2])


class Given(episodes.Shots):
    """Always the same number of supports for every class."""

    def __init__(self, shots, total=150, each=30):
        super().__init__(total=total, each=each, draws=0)
        self.shots = shots

    def __call__(self, draws, sizes, queries):
        return tf.where(sizes > 0, self.shots, 0), queries  # int32, which is as good


@pytest.mark.parametrize(
    "shots, message",
    [
        (Given(18), "together no more than the class has"),  # of 20, and 5 queries
        (Given(0), "at least 1 for each class"),
        (Given(9, each=8), "at most each=8"),
        (Given(10, total=49), "at most total=49 together"),
    ],
)
def test_shots_of_a_users_own_are_held_to_their_promises(shots, message):
    labels = np.repeat(np.arange(10), 20)
    dataset = episodes.from_arrays(np.arange(200)[:, None], labels, 5, shots, 5, tasks=4, seed=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        next(iter(dataset))


def test_shots_of_a_users_own_are_taken():
    labels = np.repeat(np.arange(10), 20)
    x, _, _ = next(iter(episodes.from_arrays(np.arange(200)[:, None], labels, 5, Given(15), 5, tasks=4, seed=0)))
    np.testing.assert_array_equal(np.sum(x["support_weight"], 1), [75] * 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": ["1", "2", "3"]}, "labels are integers, and `classes` has strings"),
        ({"classes": [None, 1]}, "`classes` must be all integers or all strings"),
        ({"within": np.full(200, np.nan)}, "`within` must be integers or strings"),
        ({"seed": episodes.fixed(40), "start": 20}, "begins with its first"),
    ],
)
def test_classes_of_another_kind_are_refused(arguments, message):
    labels = np.repeat(np.arange(10), 20)
    with pytest.raises(ValueError, match=message):
        episodes.from_arrays(np.arange(200)[:, None], labels, 2, 1, 1, tasks=4, **arguments)


def test_classes_may_be_a_set():
    x, labels = np.arange(200)[:, None], np.repeat(np.arange(10), 20)
    one, other = (
        next(iter(episodes.from_arrays(x, labels, 2, 1, 1, tasks=4, seed=0, classes=classes)))[0]["support_x"]
        for classes in ({7, 3, 1}, [1, 3, 7])
    )
    np.testing.assert_array_equal(one, other)
