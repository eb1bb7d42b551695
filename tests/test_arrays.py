import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf
from chi_square import check_uniform

from keras_maml import episodes

COUNTS = {-7: 4, 3: 9, 40: 5, 41: 6, 10**12: 4}  # label: examples; any integers, of any order


def tagged(counts=COUNTS):
    """Images that hold their own row number, and shuffled labels."""
    labels = np.repeat(list(counts), list(counts.values()))
    labels = np.random.default_rng(0).permutation(labels)
    return np.arange(len(labels))[:, None], labels


def rows_of(dataset, count):
    """Row numbers and labels of the first `count` episodes of a tagged dataset."""
    rows, labels = [], []
    for x, y in dataset:
        found = np.concatenate([x["support_x"], x["query_x"]], 1)
        rows.extend(found[..., 0] if found.ndim == 3 else found)
        labels.extend(np.concatenate([x["support_y"], y], 1))
        if len(rows) >= count:
            return np.array(rows[:count]), np.array(labels[:count])
    raise ValueError(f"{len(rows)} episodes, expected {count}")


class TestFromArrays:
    def test_an_episode_is_made_of_different_classes_and_different_examples(self):
        images, labels = tagged()
        dataset = episodes.from_arrays(images, labels, 3, shots=1, queries=3, tasks=4, seed=0)
        for rows, inside in zip(*rows_of(dataset, 100), strict=True):
            assert len(set(rows)) == 12  # so no query is in its own support
            pairs = set(zip(inside.tolist(), labels[rows].tolist(), strict=True))
            assert {label for label, _ in pairs} == {0, 1, 2}
            assert len(pairs) == 3 and len({label for _, label in pairs}) == 3

    def test_labels_say_which_rows_are_whose(self):
        dataset = episodes.from_arrays(*tagged(), 2, shots=2, queries=1, tasks=3, seed=0)
        x, y = next(iter(dataset))
        np.testing.assert_array_equal(x["support_y"], [[0, 0, 1, 1]] * 3)
        np.testing.assert_array_equal(y, [[0, 1]] * 3)

    def test_shapes_are_static_and_dtypes_are_kept(self):
        for dtype in ("uint8", "float32", "float64"):
            images = np.zeros((40, 6, 5, 1), dtype)
            dataset = episodes.from_arrays(images, np.arange(40) % 4, 3, 2, 5, tasks=7)
            x, y = dataset.element_spec
            assert x["support_x"] == tf.TensorSpec((7, 6, 6, 5, 1), dtype)
            assert x["query_x"] == tf.TensorSpec((7, 15, 6, 5, 1), dtype)
            assert x["support_y"] == tf.TensorSpec((7, 6), tf.int32)
            assert y == tf.TensorSpec((7, 15), tf.int32)

    @pytest.mark.parametrize("tasks", [1, 3, 5, 24])
    def test_an_episode_does_not_depend_on_its_batch(self, tasks):
        def read(tasks, start=0):
            dataset = episodes.from_arrays(*tagged(), 3, 1, 3, tasks, seed=5, start=start)
            return rows_of(dataset, 24)[0]

        np.testing.assert_array_equal(read(tasks), read(4))
        np.testing.assert_array_equal(read(tasks, start=10)[:14], read(4)[10:])

    def test_a_stopped_run_goes_on_where_it_stopped(self):
        whole = episodes.from_arrays(*tagged(), 2, 1, 1, tasks=4, seed=1, batches=20)
        rest = episodes.from_arrays(*tagged(), 2, 1, 1, tasks=4, seed=1, batches=9, start=11 * 4)
        np.testing.assert_array_equal(rows_of(whole, 80)[0][44:], rows_of(rest, 36)[0])

    def test_the_support_does_not_depend_on_queries(self):
        one, three = (
            next(iter(episodes.from_arrays(*tagged(), 3, 1, queries, tasks=9, seed=2)))[0]
            for queries in (1, 3)
        )
        np.testing.assert_array_equal(one["support_x"], three["support_x"])

    def test_an_iterator_restarts_with_a_seed_only(self):
        same = episodes.from_arrays(*tagged(), 2, 1, 1, tasks=8, seed=1)
        other = episodes.from_arrays(*tagged(), 2, 1, 1, tasks=8, seed=2)
        fresh = episodes.from_arrays(*tagged(), 2, 1, 1, tasks=8)
        np.testing.assert_array_equal(rows_of(same, 40)[0], rows_of(same, 40)[0])
        assert (rows_of(same, 40)[0] != rows_of(other, 40)[0]).any()
        # 40 episodes of 5 * 4 * (4 * 3)^2 or more: alike by chance once in 10^138.
        assert (rows_of(fresh, 40)[0] != rows_of(fresh, 40)[0]).any()

    @pytest.mark.parametrize("seed", [None, 0])
    def test_the_dataset_knows_its_length(self, seed):
        endless = episodes.from_arrays(*tagged(), 2, 1, 1, tasks=2, seed=seed)
        assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
        for batches in (1, 8, 9):
            dataset = episodes.from_arrays(*tagged(), 2, 1, 1, 2, seed=seed, batches=batches)
            assert dataset.cardinality() == batches
            assert len(list(dataset)) == batches

    def test_every_class_is_as_likely_under_every_label(self):
        images, labels = tagged({label: 2 for label in range(30)})
        dataset = episodes.from_arrays(images, labels, 5, 1, 1, tasks=500, seed=3, batches=12)
        rows, inside = rows_of(dataset, 6000)
        for label in range(5):
            drawn = labels[rows[:, label]]
            assert (inside[:, label] == label).all()
            check_uniform(np.bincount(drawn, minlength=30))
        pairs = labels[rows[:, 0]] * 30 + labels[rows[:, 1]]
        check_uniform([np.sum(pairs == i * 30 + j) for i in range(30) for j in range(30) if i != j])

    def test_every_ordered_draw_of_examples_is_as_likely(self):
        images, labels = tagged({5: 4, 6: 4})
        dataset = episodes.from_arrays(images, labels, 2, 1, 2, tasks=500, seed=4, batches=12)
        rows, _ = rows_of(dataset, 6000)
        for label in (5, 6):
            # Columns of label 0 are support 0, queries 2 and 3; of label 1 the others.
            first = labels[rows[:, 0]] == label
            drawn = np.where(first[:, None], rows[:, [0, 2, 3]], rows[:, [1, 4, 5]])
            seen = collections.Counter(map(tuple, drawn.tolist()))
            assert set(seen) == set(itertools.permutations(np.flatnonzero(labels == label), 3))
            check_uniform(list(seen.values()))

    def test_several_inputs_are_read_together(self):
        rows, labels = tagged()
        images = {"a": rows, "b": [rows * 2, (rows * 3.0).astype("float32")]}
        x, _ = next(iter(episodes.from_arrays(images, labels, 2, 1, 1, tasks=6, seed=0)))
        for part in (x["support_x"], x["query_x"]):
            assert isinstance(part["b"], tuple)
            np.testing.assert_array_equal(part["a"] * 2, part["b"][0])
            np.testing.assert_array_equal(np.array(part["a"]) * 3.0, part["b"][1])

    def test_arrays_are_no_constants_of_a_graph(self):
        images = np.zeros((1000, 1000), "float32")  # 4 MB

        @tf.function
        def read():
            dataset = episodes.from_arrays(images, np.arange(1000) % 5, 2, 1, 1, 3, batches=1)
            return next(iter(dataset))[0]["query_x"]

        graph = read.get_concrete_function().graph.as_graph_def()
        assert graph.ByteSize() < 10**6
        assert read().shape == (3, 2, 1000)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"ways": 1}, "`ways` must be an integer of at least 2. Received: ways=1."),
            ({"ways": 2.0}, "Received: ways=2.0"),
            ({"shots": 0}, "`shots` must be an integer of at least 1"),
            ({"queries": 0}, "`queries` must be an integer of at least 1"),
            ({"tasks": 0}, "`tasks` must be an integer of at least 1"),
            ({"tasks": True}, "Received: tasks=True"),
            ({"batches": 0}, "`batches` must be an integer of at least 1"),
            ({"seed": -1}, "`seed` must be an integer of at least 0"),
            ({"start": -1}, "`start` must be an integer of at least 0"),
            ({"ways": 6}, "at least ways=6 classes. Received: 5 classes"),
            ({"shots": 2}, r"label -7 has 4 examples, shots \+ queries needs 5 \(2 of 5 labels"),
            ({"labels": np.zeros((28, 5), int)}, r"\(N,\). Received: int64 of shape \(28, 5\)"),
            ({"labels": np.zeros(28)}, r"must be integers or strings.*float64 of shape \(28,\)"),
            ({"x": np.zeros((27, 2))}, r"`x` must have shape \(28, ...\).*\(27, 2\)"),
            ({"x": {"a": np.zeros((28, 1)), "b": np.zeros(3)}}, r"`x\['b'\]` must"),
            ({"x": [np.zeros((9, 9))] * 28}, r"`x\[0\]`.*numpy.stack"),
            ({"x": np.full((28, 2), np.nan)}, "`x` holds NaN"),
            ({"x": (np.zeros((28, 2)), np.full(28, -np.inf))}, r"`x\[1\]` holds NaN"),
            ({"x": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "Received: 0 classes"),
        ],
    )
    def test_errors_say_what_came_and_what_to_do(self, change, message):
        x, labels = tagged()
        arguments = {"ways": 2, "shots": 1, "queries": 3, "tasks": 2}
        arguments |= {"x": x, "labels": labels} | change
        with pytest.raises(ValueError, match=message):
            episodes.from_arrays(**arguments)


    @pytest.mark.parametrize("names", [np.array(["b", "a", "d"]), np.array(["b", "a", "d"], object), ["b", "a", "d"]])
    def test_labels_may_be_names(self, names):
        rows, labels = np.arange(30), np.arange(30) % 3
        by_number = episodes.from_arrays(rows, np.array([1, 0, 2])[labels], 2, 1, 3, tasks=5, seed=0)
        by_name = episodes.from_arrays(rows, [names[label] for label in labels], 2, 1, 3, tasks=5, seed=0)
        np.testing.assert_array_equal(rows_of(by_number, 5), rows_of(by_name, 5))

    def test_objects_and_strings_are_no_examples(self):
        ragged = np.array([np.zeros(n % 2 + 1) for n in range(30)], object)
        lists, strings = [[0.0] * (n % 2 + 1) for n in range(30)], np.array(["a"] * 30)
        for x, message in ((lists, "dtype object"), (ragged, "object.*unequal shapes"), (strings, "from_text")):
            with pytest.raises(ValueError, match=message):
                episodes.from_arrays(x, np.arange(30) % 3, 2, 1, 1, tasks=2)
        with pytest.raises(ValueError, match="label 2 is 1.5, a float"):
            episodes.from_arrays(np.zeros(3), np.array(["a", "b", 1.5], object), 2, 1, 1, tasks=2)

    def test_a_list_of_numbers_is_an_array(self):
        dataset = episodes.from_arrays({"a": [0.5] * 30}, [0, 1] * 15, 2, 1, 1, tasks=2)
        assert dataset.element_spec[0]["query_x"]["a"].shape == (2, 2)

    def test_the_first_example_with_nan_is_named(self):
        x = np.zeros((30, 2))
        x[[7, 9], 1] = np.nan
        with pytest.raises(ValueError, match="2 of 30 examples, the first is 7"):
            episodes.from_arrays(x, np.arange(30) % 3, 2, 1, 1, tasks=2)

    def test_padding_shows_nothing(self):
        rows, labels = tagged()
        dataset = episodes.from_arrays({"a": rows + 1, "b": rows}, labels, (2, 4), (1, 3), 1, tasks=50, seed=0)
        x, y, sample_weight = next(iter(dataset))
        assert x["support_weight"].dtype == sample_weight.dtype == tf.float32
        assert x["support_x"]["a"].shape == (50, 12, 1) and y.shape == (50, 4)
        for part, weight in (("support", x["support_weight"]), ("query", sample_weight)):
            real = weight.numpy() > 0
            assert 0 < real.mean() < 1
            a, b = (x[f"{part}_x"][key].numpy()[..., 0] for key in "ab")
            assert (a[~real] == 0).all() and (b[~real] == 0).all()
            np.testing.assert_array_equal(a[real], b[real] + 1)

    def test_classes_keep_only_their_examples_in_memory(self):
        rows, labels = tagged()
        part = episodes.from_arrays(rows, labels, 2, 1, 3, tasks=9, seed=0, classes=[40, -7])
        keep = np.isin(labels, [40, -7])
        alone = episodes.from_arrays(rows[keep], labels[keep], 2, 1, 3, tasks=9, seed=0)
        np.testing.assert_array_equal(rows_of(part, 9), rows_of(alone, 9))

    def test_within_needs_one_name_an_example(self):
        rows, labels = tagged()
        with pytest.raises(ValueError, match=r"shape \(28,\). Received: \(5,\)"):
            episodes.from_arrays(rows, labels, 2, 1, 1, tasks=2, within=np.arange(5))


class TestFromGroups:
    GROUPS = np.random.default_rng(1).permutation(np.repeat(["u", "v", "w"], [4, 7, 5]))

    def read(self, count=200, **arguments):
        rows = np.arange(16)
        arguments = {"shots": 2, "queries": 2, "tasks": 10, "seed": 0} | arguments
        y = rows[:, None] * [1.0, 10.0]
        return list(episodes.from_groups(rows, y, self.GROUPS, **arguments).take(count // 10))

    def test_an_episode_is_of_one_group_and_keeps_its_targets(self):
        groups = []
        for x, y in self.read():
            assert x["support_y"].shape == (10, 2, 2) and y.dtype == tf.float64
            np.testing.assert_array_equal(x["support_y"], x["support_x"].numpy()[..., None] * [1.0, 10.0])
            np.testing.assert_array_equal(y, x["query_x"].numpy()[..., None] * [1.0, 10.0])
            rows = np.concatenate([x["support_x"], x["query_x"]], 1)
            assert all(len(set(row)) == 4 for row in rows.tolist())
            names = self.GROUPS[rows]
            assert (names == names[:, :1]).all()
            groups.extend(names[:, 0])
        check_uniform(np.unique(groups, return_counts=True)[1])

    def test_a_cold_start_takes_what_there_is(self):
        for x, y, sample_weight in self.read(shots=3, queries=episodes.AtMost(9)):
            size = np.array([np.sum(self.GROUPS == self.GROUPS[row]) for row in x["support_x"][:, 0]])
            np.testing.assert_array_equal(sample_weight.numpy().sum(1), size - 3)
            assert (y.numpy()[sample_weight.numpy() == 0] == 0).all()

    def test_supports_come_before_queries_where_order_is_time(self):
        for x, _ in self.read(ordered=True):
            assert (x["support_x"].numpy().max(1) < x["query_x"].numpy().min(1)).all()

    def test_a_group_with_one_example_is_named(self):
        with pytest.raises(ValueError, match=r"group b has 1 example, shots \+ queries needs 2 \(1 of 2 groups"):
            episodes.from_groups(np.zeros(4), np.zeros(4), ["a", "a", "b", "a"], 1, 1, tasks=2)
        with pytest.raises(ValueError, match="group b has 1 example"):
            at_most = episodes.AtMost(5)
            episodes.from_groups(np.zeros(4), np.zeros(4), ["a", "a", "b", "a"], at_most, at_most, tasks=2)

    def test_targets_fit_the_groups(self):
        with pytest.raises(ValueError, match=r"`y` must have shape \(4, ...\)"):
            episodes.from_groups(np.zeros(4), np.zeros(3), [1, 1, 2, 2], 1, 1, tasks=2)
        with pytest.raises(ValueError, match="`y` holds NaN"):
            episodes.from_groups(np.zeros(4), [0, 1, 2, np.nan], [1, 1, 2, 2], 1, 1, tasks=2)
