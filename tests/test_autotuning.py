"""An iterator of a pipeline that tunes itself is let go slowly, so none does, see `keras_maml/autotuning.py`."""

import numpy as np
import pytest
import tensorflow as tf

from keras_maml import episodes
from keras_maml.autotuning import without_autotuning
from keras_maml.episodes.tf_datasets import open_tfds
from keras_maml.recipes import baselines

X, LABELS = np.zeros((6, 2), "float32"), np.repeat([0, 1], 3)


def episodes_of_arrays():
    return episodes.from_arrays(X, LABELS, ways=2, shots=1, queries=1, tasks=2)


class Builder:
    def as_dataset(self, split):
        return tf.data.Dataset.range(3)


@pytest.mark.parametrize(
    "make",
    [
        episodes_of_arrays,
        lambda: episodes_of_arrays().map(lambda x, y: (x, y)).take(2),
        lambda: episodes.mixture({"a": episodes_of_arrays(), "b": episodes_of_arrays()}),
        lambda: baselines.examples_of_classes(X, LABELS, batch_size=2),
        lambda: open_tfds(Builder(), "train", None, None, False),
    ],
    ids=["from_arrays", "and mapped", "mixture", "examples_of_classes", "open_tfds"],
)
def test_datasets_are_not_autotuned(make):
    assert make().options().autotune.enabled is False


def image_folder(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(tf.io.encode_png(np.zeros((4, 4, 3), "uint8")).numpy())
    return folder


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: episodes.read_dataset(tf.data.Dataset.from_tensor_slices((X, LABELS))),
        lambda folder: episodes.read_folder(image_folder(folder), 4),
    ],
    ids=["read_dataset", "read_folder"],
)
def test_nothing_is_read_by_a_pipeline_that_tunes_itself(read, tmp_path, monkeypatch):
    tuned, iterate = [], tf.data.Dataset.as_numpy_iterator

    def noted(dataset):
        tuned.append(dataset.options().autotune.enabled)
        return iterate(dataset)

    monkeypatch.setattr(tf.data.Dataset, "as_numpy_iterator", noted)
    read(tmp_path)
    assert tuned == [False]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_choice_of_a_user_stays(enabled):
    options = tf.data.Options()
    options.autotune.enabled = enabled
    chosen = tf.data.Dataset.range(3).with_options(options)
    assert without_autotuning(chosen) is chosen
    assert episodes_of_arrays().with_options(options).options().autotune.enabled is enabled
