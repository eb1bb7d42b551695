"""The loss of one task: `sum(weight * loss of an example) / sum(weight)`, in numbers that can be worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml.losses import TaskLoss

# Squared errors 1, 4, 9, 16 of four examples; their weighted mean with these weights: (1 + 0.5 * 4 + 16) / 2.5 = 7.6.
Y = tf.constant([[0.0], [0.0], [0.0], [0.0]])
PREDICTIONS = tf.constant([[1.0], [2.0], [3.0], [4.0]])
WEIGHT = tf.constant([1.0, 0.5, 0.0, 1.0])


def squared_error(y, predictions):
    return tf.reduce_mean(tf.square(y - predictions), -1)


@keras.saving.register_keras_serializable("test_losses")
class SquaredError(keras.losses.Loss):
    def call(self, y, predictions):
        return squared_error(y, predictions)


def with_mask(tensor, mask):
    tensor = tf.identity(tensor)
    tensor._keras_mask = tf.constant(mask)
    return tensor


@pytest.mark.parametrize(
    "loss", ["mse", "mean_squared_error", squared_error, keras.losses.MeanSquaredError(), SquaredError()],
    ids=["name", "long name", "function", "object", "object of a class of one's own"],
)
def test_mean(loss):
    np.testing.assert_allclose(TaskLoss(loss)(Y, PREDICTIONS), 7.5)
    np.testing.assert_allclose(TaskLoss(loss)(Y, PREDICTIONS, WEIGHT), 7.6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "mean_with_sample_weight"])
def test_reductions_that_divide_divide_by_the_weights(reduction):
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    np.testing.assert_allclose(TaskLoss(loss)(Y, PREDICTIONS, WEIGHT), 7.6)


def test_sum():
    loss = TaskLoss(keras.losses.MeanSquaredError(reduction="sum"))
    np.testing.assert_allclose([loss(Y, PREDICTIONS), loss(Y, PREDICTIONS, WEIGHT)], [30, 19])


def test_equals_keras_where_nothing_is_weighted():
    y, logits = tf.constant([0, 2, 1]), tf.constant(np.random.default_rng(0).normal(size=(3, 3)), tf.float32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(TaskLoss(loss)(y, logits), loss(y, logits), rtol=1e-6)
    np.testing.assert_allclose(
        TaskLoss("sparse_categorical_crossentropy")(y, tf.nn.softmax(logits)), loss(y, logits), rtol=1e-5
    )


def test_labels_do_not_broadcast_against_predictions():
    # Labels (4,) against predictions (4, 1), or the other way round, would make (4, 4) differences.
    for loss in ("mse", squared_error, keras.losses.MeanSquaredError()):
        for y, predictions in ((Y[:, 0], PREDICTIONS), (Y, PREDICTIONS[:, 0])):
            np.testing.assert_allclose(TaskLoss(loss)(y, predictions), 7.5)
            np.testing.assert_allclose(TaskLoss(loss)(y, predictions, WEIGHT), 7.6)


def test_what_a_padded_example_holds_does_not_matter():
    predictions = tf.constant([[1.0], [np.inf], [3.0], [4.0]])
    weight = tf.constant([1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(TaskLoss("mse")(Y, predictions, weight), 5)


def test_masks_count_as_weights():
    # Two examples of three steps, squared errors 1, 4, 9 and 16, 25, 36; the mask leaves 1, 4 and 16.
    predictions = with_mask([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]], [[True, True, False], [True, False, False]])
    for loss in ("mse", squared_error, keras.losses.MeanSquaredError()):
        for y in (tf.zeros((2, 3, 1)), tf.zeros((2, 3))):
            np.testing.assert_allclose(TaskLoss(loss)(y, predictions), 21 / 3)
            # the first example counts half: (0.5 * 5 + 16) / (0.5 + 0.5 + 1)
            np.testing.assert_allclose(TaskLoss(loss)(y, predictions, tf.constant([0.5, 1.0])), 18.5 / 2)


def test_weights_of_examples_with_many_values():
    # Two examples of two values: (2 * (1 + 4) + 9 + 16) / (2 * 2 + 2)
    loss = TaskLoss(lambda y, predictions: tf.square(y - predictions))
    y, predictions = tf.zeros((2, 2)), tf.constant([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(loss(y, predictions, tf.constant([2.0, 1.0])), 35 / 6)


def test_ignored_class_is_left_out_as_in_keras():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    y, logits = tf.constant([0, -1, 1]), tf.constant([[1.0, 0.0], [5.0, 3.0], [2.0, 0.0]])
    np.testing.assert_allclose(TaskLoss(loss)(y, logits), loss(y, logits), rtol=1e-6)
    assert TaskLoss(loss).label_limit((None, 2)) is None


def test_precision_is_that_of_the_loss_or_the_predictions():
    for dtype, expected in (("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")):
        value = TaskLoss("mse")(tf.cast(Y, dtype), tf.cast(PREDICTIONS, dtype))
        assert value.dtype == expected and value == 7.5
    # 1 + 2^-40 is not a float32
    near = TaskLoss("mae")(tf.zeros((1, 1), tf.float64), tf.constant([[1 + 2.0**-40]], tf.float64))
    np.testing.assert_equal(near.numpy(), 1 + 2.0**-40)


def test_integer_labels_of_any_type():
    logits = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    losses = [
        TaskLoss(keras.losses.SparseCategoricalCrossentropy(from_logits=True))(tf.constant([0, 1], dtype), logits)
        for dtype in (tf.uint8, tf.int64, tf.float32)
    ]
    np.testing.assert_allclose(losses, np.log(1 + np.exp(-1)), rtol=1e-6)


# ----------------------------------------------------------------------------------------------------- several outputs


@pytest.mark.parametrize("container", [lambda a, b: {"a": a, "b": b}, lambda a, b: [a, b], lambda a, b: (a, b)])
def test_several_outputs(container):
    # 2 * 7.6 of squared errors, 3 * (1 + 0.5 * 2 + 4) / 2.5 = 3 * 2.4 of absolute ones
    y, predictions = container(Y, Y), container(PREDICTIONS, PREDICTIONS)
    loss = TaskLoss(container("mse", keras.losses.MeanAbsoluteError()), container(2.0, 3.0))
    np.testing.assert_allclose(loss(y, predictions, WEIGHT), 22.4)
    np.testing.assert_allclose(TaskLoss(container("mse", "mae"))(y, predictions), 7.5 + 2.5)


def test_output_without_a_loss():
    loss = TaskLoss({"a": "mse", "b": None})
    np.testing.assert_allclose(loss({"a": Y, "b": Y}, {"a": PREDICTIONS, "b": PREDICTIONS}), 7.5)


def test_one_output_may_be_weighted():
    np.testing.assert_allclose(TaskLoss("mse", 2.0)(Y, PREDICTIONS), 15)


@pytest.mark.parametrize(
    "loss, y, predictions",
    [
        ("mse", {"a": Y}, {"a": PREDICTIONS}),
        ({"a": "mse", "b": "mse"}, {"a": Y, "b": Y}, [PREDICTIONS, PREDICTIONS]),
        ({"a": "mse", "b": "mse"}, {"a": Y}, {"a": PREDICTIONS, "b": PREDICTIONS}),
        (["mse", "mse"], Y, PREDICTIONS),
    ],
)
def test_structures_that_differ_are_refused(loss, y, predictions):
    with pytest.raises(ValueError, match="must share one structure.*Received: loss=.*mean_squared_error"):
        TaskLoss(loss)(y, predictions)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("reduction", [None, "none"])
@pytest.mark.parametrize("container", [lambda loss: loss, lambda loss: {"a": "mse", "b": loss}])
def test_a_loss_without_a_reduction_is_refused(reduction, container):
    message = "The loss of a task is one number, and MeanSquaredError has reduction="
    with pytest.raises(ValueError, match=message):
        TaskLoss(container(keras.losses.MeanSquaredError(reduction=reduction)))


@pytest.mark.parametrize("loss", [None, [None, None], {"a": None}])
def test_no_loss_is_refused(loss):
    with pytest.raises(ValueError, match=r"got none. Pass `loss=` to `compile`"):
        TaskLoss(loss)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss identifier: msee"):
        TaskLoss("msee")


def test_loss_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`loss_weights` must be structured as `loss`"):
        TaskLoss({"a": "mse", "b": "mae"}, {"a": 1.0})


def test_one_number_for_the_whole_task():
    # It is taken as it is, and refused where it would have to be weighted.
    loss = TaskLoss(lambda y, predictions: tf.reduce_max(tf.square(y - predictions)))
    np.testing.assert_allclose(loss(Y, PREDICTIONS), 16)
    with pytest.raises(ValueError, match=r"has shape \(\).*returns one value for each example"):
        loss(Y, PREDICTIONS, WEIGHT)


def test_a_mask_that_the_loss_has_summed_over_is_refused():
    loss = TaskLoss(lambda y, predictions: tf.reduce_mean(tf.square(y - predictions), (1, 2)))
    with pytest.raises(ValueError, match=r"has shape \(2,\), .* shapes \[\(2, 3\)\]"):
        loss(tf.zeros((2, 3, 1)), with_mask(tf.zeros((2, 3, 1)), [[True] * 3] * 2))


def test_label_limit():
    sparse = keras.losses.SparseCategoricalCrossentropy()
    for loss in (sparse, "sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy):
        assert TaskLoss(loss).label_limit((None, 5)) == 5
        assert TaskLoss(loss).label_limit(None) is None
    for loss in ("categorical_crossentropy", "mse", squared_error, {"a": sparse}):
        assert TaskLoss(loss).label_limit((None, 5)) is None
