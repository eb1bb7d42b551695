"""Every check of a batch by itself, without a model or with one of which only the shape matters."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml.inputs import check_shapes, check_values, first_batch


def batch(tasks=2, supports=3, queries=5, shape=(4,)):
    x = {
        "support_x": np.zeros((tasks, supports, *shape)),
        "support_y": np.zeros((tasks, supports), int),
        "query_x": np.zeros((tasks, queries, *shape)),
    }
    return x, np.zeros((tasks, queries), int)


def test_good_batches_pass():
    x, y = batch()
    check_shapes(x)
    check_shapes(x, y, np.ones((2, 5)))
    check_shapes({**x, "support_weight": np.ones((2, 3))}, y)
    check_shapes({**x, "support_x": {"a": x["support_x"]}, "query_x": {"a": x["query_x"]}}, y)
    check_shapes(x, y, model=keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    # Sizes that are not known while a step is traced fit anything.
    unknown = {name: tf.TensorSpec([None] * value.ndim) for name, value in x.items()}
    check_shapes(unknown, tf.TensorSpec([2, None]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"query_x": None}, r"Received: a dict with keys \['support_x', 'support_y'\]"),
        ({"extra": np.zeros((2, 3))}, r"keys \['extra', 'query_x', 'support_x', 'support_y'\]"),
        ({"support_x": np.zeros((3, 3, 4))}, r"numbers of tasks \(axis 0\) differ: support_x has 3, support_y has 2"),
        ({"y": np.zeros((4, 5))}, r"numbers of tasks \(axis 0\) differ: support_x has 2, y has 4"),
        ({"support_y": np.zeros((2, 2))}, r"numbers of supports \(axis 1\) differ: support_x has 3, support_y has 2"),
        ({"support_weight": np.ones((2, 1))}, r"supports \(axis 1\) differ: support_x has 3, support_weight has 1"),
        ({"y": np.zeros((2, 4))}, r"numbers of queries \(axis 1\) differ: query_x has 5, y has 4"),
        ({"support_y": np.zeros(2)}, r"`support_y` needs a task axis and an example axis.*Received shape \(2,\)"),
        ({"support_weight": np.ones((2, 3, 1))}, r"`support_weight` must be one tensor.*Received: \(2, 3, 1\)"),
        ({"query_x": np.zeros((2, 5, 3))}, r"must have one shape. Received: \(2, 3, 4\) and \(2, 5, 3\)"),
        ({"query_x": np.zeros((2, 5, 4, 1))}, r"must have one shape"),
        ({"query_x": {"a": np.zeros((2, 5, 4))}}, r"`support_x` and `query_x` must be nested alike"),
        ({"y": [np.zeros((2, 5)), np.zeros((2, 5))]}, "`support_y` and `y` must be nested alike"),
        ({"y": np.zeros((2, 5, 3))}, r"`support_y` and `y` must have one shape. Received: \(2, 3\) and \(2, 5, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_together(changes, message):
    x, y = batch()
    parts = {name: value for name, value in {**x, "y": y, **changes}.items() if value is not None}
    y = parts.pop("y")
    with pytest.raises(ValueError, match=message):
        check_shapes(parts, y)


def test_one_task_without_a_task_axis():
    x, y = batch()
    with pytest.raises(ValueError, match=r"`support_y` needs a task axis and an example axis, \(tasks, exam"):
        check_shapes({name: value[0] for name, value in x.items()}, y[0])


def test_what_is_no_dict():
    x, y = batch()
    with pytest.raises(ValueError, match="Received: a tuple. Episode datasets of `keras_maml.episodes` have this form"):
        check_shapes(tuple(x.values()), y)


@pytest.mark.parametrize(
    "sizes, message", [((0, 3, 5), "holds no task"), ((2, 0, 5), "have no supports"), ((2, 3, 0), "have no queries")]
)
def test_nothing_to_learn_from(sizes, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(*batch(*sizes))


def test_inputs_of_another_shape_than_the_model_takes():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"takes inputs \(examples, 4\), and `support_x` has \(tasks, 3, 7\)"):
        check_shapes(*batch(shape=(7,)), model=model)
    # Without the task axis, all ranks are one too low.
    images = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="needs a task axis before the example axis"):
        check_shapes(*batch(shape=(8, 1)), model=images)


@pytest.mark.parametrize("convert", [np.asarray, tf.constant])
def test_values(convert):
    x, y = batch()
    good = {**x, "y": y, "sample_weight": np.ones((2, 5)), "support_weight": None}
    limits = {"support_y": 3, "y": 3}
    good = {name: value if value is None else convert(value) for name, value in good.items()}
    check_values(good, limits)
    for name, value, message in (
        ("support_x", np.full((2, 3, 4), np.nan), "`support_x` has 24 values of 24 that are NaN or infinite"),
        ("query_x", np.full((2, 5, 4), np.inf), "`query_x` has 40 values of 40 that are NaN or infinite"),
        ("y", np.array([[0, 1, 2, 3, 0]] * 2), r"Labels must be in \[0, 3\).*3 outputs. Received: `y` .* from 0 to 3"),
        ("support_y", np.array([[-1, 2, 2]] * 2), r"`support_y` with labels from -1 to 2"),
        ("y", np.array([[0, 1, 1.7, 0, 0]] * 2), r"whole numbers in \[0, 3\).*`y` with a label of 1.7. For shares"),
        ("sample_weight", np.array([[1.0, -0.5, 1, 1, 1]] * 2), "`sample_weight` must not be negative. .* of -0.5"),
        ("sample_weight", np.array([[0.0, 1], [0, 0]]), "All weights of task 1 in `sample_weight` are 0"),
        ("support_weight", np.zeros((2, 3)), "All weights of task 0 in `support_weight` are 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_values({**good, name: convert(value)}, limits)
    check_values({**good, "y": convert(np.array([[0.0, 1, 2, 1, 0]] * 2))}, limits)


def test_values_of_nested_inputs():
    with pytest.raises(ValueError, match="`query_x` has 1 values"):
        check_values({"query_x": {"a": np.zeros(2), "b": [np.array([np.nan])]}}, {})


def test_labels_that_are_no_class_numbers_are_free():
    check_values({"y": np.array([[-7, 9]]), "support_y": np.array([[8]])}, {"y": None, "support_y": None})


def test_values_that_are_being_traced_pass():
    @tf.function
    def traced(labels):
        check_values({"y": labels}, {"y": 1})
        return labels

    traced(tf.constant([5]))


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    @property
    def num_batches(self):
        return self._batches

    def __getitem__(self, index):
        return index, index + 10


def first(data, name="x", steps=None, **arguments):
    return first_batch({name: data, "steps": steps, **arguments}, name, "steps")


def test_first_batch():
    dataset = tf.data.Dataset.range(7, 9).map(lambda i: (i, i + 10))
    assert first(dataset)[:2] == (7, 17) and next(iter(dataset)) == (7, 17)
    assert first(dataset.take(0)) is None
    assert first(dataset.repeat(), steps=1)[0] == 7
    assert first(Batches(2)) == (0, 10, None) and first(Batches(0)) is None and first(Batches(None)) is None
    # Looking at a generator would use it up.
    generator = iter([(1, 2), (3, 4)])
    assert first(generator) is None and next(generator) == (1, 2)
    x, y = batch()
    assert first(x, y=y) == (x, y, None)
    assert first((x, y), name="validation_data") == (x, y, None)


def test_endless_data():
    with pytest.raises(ValueError, match="The dataset given as `x` never ends. Pass `steps=`"):
        first(tf.data.Dataset.range(2).repeat())


def test_weights_of_several_outputs_in_arrays():
    x, y = batch()
    with pytest.raises(ValueError, match="Keras takes no `sample_weight`.*from_tensor_slices"):
        first(x, y=[y, y], sample_weight=np.ones((2, 5)))
