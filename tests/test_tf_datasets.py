import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_maml import episodes


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
        dataset = episodes.from_tfds(builder, "train", ways=3, shots=1, queries=3, tasks=2, seed=0)
        assert builder.prepared == 1
        x, y = next(iter(dataset))
        values = np.concatenate([x["support_x"], x["query_x"]], 1)[:, :, 0, 0, 0]
        # All 12 examples are in every episode, 4 with each label.
        np.testing.assert_array_equal(np.sort(values), [np.arange(0, 240, 20)] * 2)
        classes = values // 80
        np.testing.assert_array_equal(classes[:, 3:], np.repeat(classes[:, :3], 3, axis=1))

    def test_does_not_prepare_without_leave(self):
        builder = Builder()
        episodes.from_tfds(builder, "train", ways=3, shots=1, queries=3, tasks=2, download=False)
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
            episodes.from_tfds(Builder((None, 8, 3)), "train", ways=3, shots=1, queries=3, tasks=2)

    def test_arguments_are_judged_before_anything_is_read(self):
        builder = Builder()
        with pytest.raises(ValueError, match="`ways` must be"):
            episodes.from_tfds(builder, "train", ways=1, shots=1, queries=3, tasks=2)
        with pytest.raises(ValueError, match="`image_size` must be"):
            episodes.from_tfds(builder, "train", ways=3, shots=1, queries=3, tasks=2, image_size=0)
        with pytest.raises(ValueError, match="a builder has its own. Received: data_dir='x'"):
            episodes.from_tfds(builder, "train", ways=3, shots=1, queries=3, tasks=2, data_dir="x")
        assert builder.prepared == 0

    def test_says_how_to_install_what_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with pytest.raises(ImportError, match=r'pip install "keras-maml\[datasets\]"'):
            episodes.from_tfds("omniglot", "train", ways=5, shots=1, queries=1, tasks=2)

    def test_says_that_a_dataset_is_not_there(self, tmp_path):
        pytest.importorskip("tensorflow_datasets")
        with pytest.raises(ValueError, match="'omniglot' is not prepared.*download=False"):
            episodes.read_tfds("omniglot", "train", data_dir=str(tmp_path), download=False)


class TestFromDataset:
    X = np.arange(24.0).reshape(12, 2)
    Y = np.arange(12) // 4

    @pytest.mark.parametrize("batch", [None, 5])
    def test_reads_examples_and_batches(self, batch):
        dataset = tf.data.Dataset.from_tensor_slices(({"a": self.X, "b": self.X[:, 0]}, self.Y))
        x, labels = episodes.read_dataset(dataset if batch is None else dataset.batch(batch))
        np.testing.assert_array_equal(x["a"], self.X)
        np.testing.assert_array_equal(x["b"], self.X[:, 0])
        np.testing.assert_array_equal(labels, self.Y)

    def test_gives_the_episodes_of_its_arrays(self):
        dataset = tf.data.Dataset.from_tensor_slices((self.X, self.Y))
        sampling = dict(ways=3, shots=1, queries=2, tasks=4, seed=0)
        x, y = next(iter(episodes.from_dataset(dataset, **sampling)))
        expected_x, expected_y = next(iter(episodes.from_arrays(self.X, self.Y, **sampling)))
        np.testing.assert_array_equal(x["support_x"], expected_x["support_x"])
        np.testing.assert_array_equal(y, expected_y)

    def test_labels_may_be_strings(self):
        names = np.array(["a", "é", "c"])[self.Y]
        _, labels = episodes.read_dataset(tf.data.Dataset.from_tensor_slices((self.X, names)))
        np.testing.assert_array_equal(labels, names)

    @pytest.mark.parametrize(
        "dataset, message",
        [
            (np.zeros(3), "Expected a `tf.data.Dataset`"),
            (tf.data.Dataset.from_tensor_slices(np.zeros(3)), r"pairs \(x, y\)"),
            (tf.data.Dataset.from_tensor_slices((np.zeros(3),) * 3), r"pairs \(x, y\)"),
            (tf.data.Dataset.from_tensor_slices((np.zeros((3, 2)), np.eye(3))).batch(2), "`argmax`"),
            (tf.data.Dataset.from_tensor_slices((np.zeros(3), np.arange(3))).repeat(), r"never ends.*`take\(n\)`"),
            (tf.data.Dataset.from_tensor_slices((np.zeros(3), np.arange(3))).take(0), "no example"),
            (
                tf.data.Dataset.from_generator(
                    lambda: iter([(np.zeros(2), 1), (np.zeros(3), 2)]),
                    output_signature=(tf.TensorSpec((None,)), tf.TensorSpec((), tf.int32)),
                ),
                "one shape. Received: shape",
            ),
            (
                tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1], [2, 3]]), [0, 1])),
                "Expected dense tensors",
            ),
        ],
    )
    def test_errors(self, dataset, message):
        with pytest.raises(ValueError, match=message):
            episodes.read_dataset(dataset)
