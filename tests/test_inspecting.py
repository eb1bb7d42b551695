import keras
import numpy as np
import pytest
import tensorflow as tf
from handmade import batch

from keras_maml import episodes
from keras_maml.episodes.inspecting import class_labels


def test_what_batches_may_come_as():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return batch()

    for dataset, length in (
        (batch(), 1),
        ([batch(), batch()], 2),
        (Batches(), 3),
        ((batch() for _ in range(4)), None),
        (tf.data.Dataset.from_tensors(batch()).repeat(9).filter(lambda *_: True), None),
    ):
        facts = episodes.describe(dataset, batches=2, print_fn=lambda line: None)
        assert facts["length"] == length and facts["episodes"] == min(2, length or 2) and facts["ways"] == (2, 2.0, 2)


@pytest.mark.parametrize(
    "dataset, received",
    [
        (tf.data.Dataset.from_tensors(np.zeros(3)), "1 part, the first EagerTensor"),
        (np.zeros((3, 2)), "1 part, the first ndarray"),
        ([(np.zeros((3, 2)), np.zeros(3))], "2 parts, the first ndarray"),
        (({"support_x": np.zeros((1, 2))}, np.zeros((1, 2))), r"2 parts, the first a dict of \['support_x'\]"),
        (batch()[:1], "1 part, the first a dict of .*"),
        (batch()[0], "dict, neither"),
        (3, "int, neither"),
        (None, "NoneType, neither"),
        ("a folder", "str, neither"),
        (batch(labels=((0, 1, 1),)), r"the shapes support_x \(1, 2, 4\), support_y \(1, 3\), .*"),
        (batch(queries=((0, 1, 1), (0, 1, 1))), r"the shapes .*, query_y \(2, 3\)"),
        (batch(query_x=np.ones((2, 3, 4)), queries=((0, 1, 1), (0, 1, 1))), r"the shapes .*, query_x \(2, 3, 4\)"),
        (batch(support_weight=np.ones((2, 1))), r"support_weight of shape \(2, 1\), where \(1, 2\) was expected"),
        (batch(labels=(0, 1)), r"the shapes .*, support_y \(2,\), .*"),
        (batch(support_weight=np.ones((1, 3))), r"support_weight of shape \(1, 3\), where \(1, 2\) was expected"),
        ((*batch(), np.ones(1)), r"sample_weight of shape \(1,\), where \(1, 3\) was expected"),
    ],
)
def test_what_is_no_episode_batch(dataset, received):
    with pytest.raises(ValueError, match=f"An episode batch is .*Received:? {received}"):
        episodes.describe(dataset)
    if not isinstance(dataset, tf.data.Dataset):
        with pytest.raises(ValueError, match="An episode batch is"):
            episodes.plot(dataset)


def test_what_counts_as_classes():
    labels = np.array([[0, 2], [1, 0]])
    for ys in (labels, labels.astype("uint8"), labels[..., None], np.eye(3)[labels], np.eye(3, dtype=bool)[labels]):
        (found,) = class_labels([ys])
        np.testing.assert_array_equal(found, labels)
    padded = np.eye(3)[labels] * np.array([[[1], [1]], [[1], [0]]])  # a row of zeros is padding, of label 0
    np.testing.assert_array_equal(class_labels([padded])[0], labels)
    for ys in (labels.astype("float32"), np.ones((2, 2, 3)), np.eye(3)[labels] / 2, np.zeros((2, 2, 3))):
        assert class_labels([ys]) is None
    assert class_labels([labels, labels / 2]) is None
