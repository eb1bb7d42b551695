import collections
import itertools
import math
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

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
        rows.extend(np.concatenate([x["support_x"], x["query_x"]], 1)[..., 0])
        labels.extend(np.concatenate([x["support_y"], y], 1))
        if len(rows) >= count:
            return np.array(rows[:count]), np.array(labels[:count])
    raise ValueError(f"{len(rows)} episodes, expected {count}")


def check_uniform(counts):
    """Chi-square with `d` degrees of freedom leaves these bounds with a probability of e^-20 each.

    Laurent and Massart 2000, "Adaptive estimation of a quadratic functional", lemma 1.
    """
    counts = np.asarray(counts, float).ravel()
    expected, d, t = counts.mean(), counts.size - 1, 20.0
    statistic = ((counts - expected) ** 2).sum() / expected
    assert d - 2 * math.sqrt(d * t) <= statistic <= d + 2 * math.sqrt(d * t) + 2 * t


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
            ({"labels": np.zeros(28)}, r"must be integers.*float64 of shape \(28,\)"),
            ({"images": np.zeros((27, 2))}, r"`images` must have shape \(28, ...\).*\(27, 2\)"),
            ({"images": {"a": np.zeros((28, 1)), "b": np.zeros(3)}}, r"`images\['b'\]` must"),
            ({"images": [np.zeros((9, 9))] * 28}, r"`images\[0\]`.*numpy.stack"),
            ({"images": np.full((28, 2), np.nan)}, "`images` holds NaN"),
            ({"images": (np.zeros((28, 2)), np.full(28, -np.inf))}, r"`images\[1\]` holds NaN"),
            ({"images": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "Received: 0 classes"),
        ],
    )
    def test_errors_say_what_came_and_what_to_do(self, change, message):
        images, labels = tagged()
        arguments = {"ways": 2, "shots": 1, "queries": 3, "tasks": 2}
        arguments |= {"images": images, "labels": labels} | change
        with pytest.raises(ValueError, match=message):
            episodes.from_arrays(**arguments)


class Builder:
    """What is needed of a builder of tensorflow-datasets: 12 drawings of 3 classes."""

    def __init__(self, shape=(8, 8, 3)):
        self.shape = shape
        self.prepared = 0

    def download_and_prepare(self):
        self.prepared += 1

    def as_dataset(self, split, as_supervised):
        assert split == "train" and as_supervised
        spec = tf.TensorSpec(self.shape, tf.uint8), tf.TensorSpec((), tf.int64)
        height, width, channels = (8 if n is None else n for n in self.shape)
        return tf.data.Dataset.from_generator(
            lambda: ((np.full((height, width, channels), 20 * i), i // 4) for i in range(12)),
            output_signature=spec,
        )


class TestFromTfds:
    def test_reads_a_builder_once(self):
        builder = Builder()
        dataset = episodes.from_tfds(builder, "train", 3, 1, 3, tasks=2, seed=0)
        assert builder.prepared == 1
        x, y = next(iter(dataset))
        values = np.concatenate([x["support_x"], x["query_x"]], 1)[:, :, 0, 0, 0]
        # All 12 examples are in every episode, 4 with each label.
        np.testing.assert_array_equal(np.sort(values), [np.arange(0, 240, 20)] * 2)
        classes = values // 80
        np.testing.assert_array_equal(classes[:, 3:], np.repeat(classes[:, :3], 3, axis=1))

    def test_does_not_prepare_without_leave(self):
        builder = Builder()
        episodes.from_tfds(builder, "train", 3, 1, 3, tasks=2, download=False)
        assert builder.prepared == 0

    @pytest.mark.parametrize("size, shape", [(4, (4, 4, 3)), ((2, 5), (2, 5, 3))])
    def test_images_are_resized_in_their_dtype(self, size, shape):
        # A kernel that sums to 1 leaves a flat image as it is, if it is rounded and not cut off.
        images, labels = episodes.read_tfds(Builder((None, None, 3)), "train", image_size=size)
        assert images.shape == (12, *shape) and images.dtype == np.uint8
        np.testing.assert_array_equal(images, np.broadcast_to(images[:, :1, :1, :1], images.shape))
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(0, 240, 20))
        np.testing.assert_array_equal(labels, np.repeat(np.arange(3), 4))

    def test_images_of_unknown_size_need_image_size(self):
        with pytest.raises(ValueError, match="may differ in size.*Set `image_size`"):
            episodes.from_tfds(Builder((None, 8, 3)), "train", 3, 1, 3, tasks=2)

    def test_arguments_are_judged_before_anything_is_read(self):
        builder = Builder()
        with pytest.raises(ValueError, match="`ways` must be"):
            episodes.from_tfds(builder, "train", 1, 1, 3, tasks=2)
        with pytest.raises(ValueError, match="`image_size` must be"):
            episodes.from_tfds(builder, "train", 3, 1, 3, tasks=2, image_size=0)
        with pytest.raises(ValueError, match="a builder has its own. Received: data_dir='x'"):
            episodes.from_tfds(builder, "train", 3, 1, 3, tasks=2, data_dir="x")
        assert builder.prepared == 0

    def test_says_how_to_install_what_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with pytest.raises(ImportError, match=r'pip install "keras-maml\[datasets\]"'):
            episodes.from_tfds("omniglot", "train", 5, 1, 1, tasks=2)

    def test_says_that_a_dataset_is_not_there(self, tmp_path):
        pytest.importorskip("tensorflow_datasets")
        with pytest.raises(ValueError, match="'omniglot' is not prepared.*download=False"):
            episodes.read_tfds("omniglot", "train", data_dir=str(tmp_path), download=False)


class TestFromFunction:
    @pytest.mark.parametrize("block", [1, 2, 8])
    def test_a_batch_is_computed_from_its_indices(self, block):
        dataset = episodes.from_function(
            lambda seed, index: {"index": index, "pair": tf.stack([index, seed + 0 * index], 1)},
            tasks=3,
            seed=9,
            batches=3,
            start=5,
            block=block,
        )
        indices = np.arange(5, 14).reshape(3, 3)
        assert len(dataset) == 3
        for element, index in zip(dataset, indices, strict=True):
            np.testing.assert_array_equal(element["index"], index)
            np.testing.assert_array_equal(element["pair"], np.stack([index, [9, 9, 9]], 1))

    @pytest.mark.parametrize("block", [1, 8])
    def test_without_a_seed_every_iterator_has_one_of_its_own(self, block):
        dataset = episodes.from_function(
            lambda seed, index: seed + 0 * index, tasks=2, batches=20, block=block
        )
        seeds = []
        for _ in range(3):
            tf.random.set_seed(0)  # not asked
            keras.utils.set_random_seed(0)
            seen = np.unique([element.numpy() for element in dataset])
            assert len(seen) == 1 and seen[0] >= 0
            seeds.append(seen[0])
        assert len(set(seeds)) == 3

    def test_block_must_be_positive(self):
        with pytest.raises(ValueError, match="`block` must be"):
            episodes.from_function(lambda seed, index: index, tasks=2, block=0)


class TestUniform:
    def test_equals_split_mix_64(self):
        mask, increment = 2**64 - 1, 0x9E3779B97F4A7C15

        def mix(bits):
            bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
            bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
            return bits ^ bits >> 31

        # The published stream of state 1234567 begins so.
        stream = [mix(1234567 + n * increment & mask) for n in (1, 2)]
        assert stream == [6457827717110365317, 3203168211198807973]

        seed, indices = 2**62 + 12345, [0, 1, 2**40 + 3]
        state = [mix(mix(seed) + increment * index & mask) for index in indices]
        bits = [[mix(s + increment * (n + 1) & mask) for s in state] for n in range(6)]
        expected = np.array([[(b >> 11) / 2**53 for b in row] for row in bits])
        np.testing.assert_array_equal(episodes.uniform(seed, indices, 6), expected)
        np.testing.assert_array_equal(episodes.uniform(seed, indices, 2, first=4), expected[4:])

    def test_is_uniform_over_episodes_over_draws_and_over_seeds(self):
        over_episodes = episodes.uniform(0, np.arange(50_000), 1)[0]
        over_draws = episodes.uniform(0, [0], 50_000)[:, 0]
        over_seeds = tf.function(tf.map_fn)(
            lambda seed: episodes.uniform(seed, [0], 1)[0, 0],
            tf.range(20_000),
            fn_output_signature=tf.float64,
        )
        for draws in (over_episodes, over_draws, over_seeds):
            check_uniform(np.histogram(draws, 50, (0, 1))[0])
            check_uniform(np.histogram(draws * 2**20 % 1, 50, (0, 1))[0])  # the lower bits
            check_uniform(np.histogram2d(draws[:-1], draws[1:], 20, [(0, 1)] * 2)[0])

    def test_episodes_and_draws_do_not_repeat_each_other(self):
        # 300 * 300 numbers of 53 bits: two alike once in 2 million.
        draws = episodes.uniform(0, np.arange(300), 300).numpy()
        assert len(np.unique(draws)) == draws.size


class TestWithoutReplacement:
    def test_every_ordered_draw_has_one_code(self):
        # Draw j falls in one of size - j equal parts of [0, 1): 5 * 4 * 3 codes, 60 ordered draws.
        codes = np.array(list(itertools.product(range(5), range(4), range(3))))
        draws = (codes + 0.5) / [5, 4, 3]
        picks = episodes._without_replacement(tf.constant(draws.T), 5).numpy().T
        assert sorted(map(tuple, picks)) == sorted(itertools.permutations(range(5), 3))

    def test_sizes_may_differ_and_the_last_number_is_in_reach(self):
        sizes = np.array([3, 1000, 2**40 + 1])
        greatest = tf.fill((3, 3), tf.constant(1 - 2.0**-53, tf.float64))
        picks = episodes._without_replacement(greatest, sizes).numpy()
        np.testing.assert_array_equal(picks, [sizes - 1, sizes - 2, sizes - 3])
