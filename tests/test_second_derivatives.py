"""Hand-written second derivatives against TensorFlow's own of the composite in float64."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.layers import adaptation_scope
from keras_maml.second_derivatives import batch_normalization, max_pooling

EPSILON = 1e-3


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def first_and_second(function, inputs, seed=0):
    """Value, gradients, and gradients of a random combination of the gradients, of a random sum of outputs."""
    inputs = [tf.convert_to_tensor(value) for value in inputs]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            value = function(*inputs)
            # The square makes the cotangent of the outputs depend on the inputs.
            loss = tf.reduce_sum(tf.cast(normal(*value.shape, seed=seed + 1), value.dtype) * tf.square(value))
        gradients = inner.gradient(loss, inputs)
        mixed = tf.add_n(
            [tf.reduce_sum(tf.cast(normal(*g.shape, seed=seed + 2), g.dtype) * tf.sin(g)) for g in gradients]
        )
    return [value, *gradients, *outer.gradient(mixed, inputs)]


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert np.linalg.norm(np.asarray(a, "float64") - e) <= tolerance * np.linalg.norm(e)


def composite(x, gamma, beta):
    # Of reductions that TensorFlow differentiates rightly any number of times.
    deviation = x - tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean(tf.square(deviation), [0, 1, 2])
    return gamma * deviation / tf.sqrt(variance + EPSILON) + beta


@pytest.mark.parametrize("run", ["eager", "graph", "xla"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 1, 1, 3)], ids=["images", "four entries"])
def test_batch_normalization(shape, run):
    channels = shape[-1]
    # Means far from 0: an uncorrected or misplaced moment would show.
    inputs = [normal(*shape) + 2, normal(channels) + 1, normal(channels, seed=5)]
    expected = first_and_second(composite, inputs)

    def fused(*inputs):
        return first_and_second(lambda *values: batch_normalization(*values, EPSILON), inputs)

    if run != "eager":
        fused = tf.function(fused, jit_compile=run == "xla", autograph=False)
    assert_close(fused(*(value.astype("float32") for value in inputs)), expected, 1e-4)


@pytest.mark.parametrize("run", ["eager", "graph", "xla"])
@pytest.mark.parametrize(
    "shape, size", [((2, 4, 4, 3), (2, 2)), ((2, 7, 5, 3), (3, 2))], ids=["whole", "windows of 3 x 2 and a rest"]
)
def test_max_pooling(shape, size, run):
    x = normal(*shape)

    def slices(x):
        # The maximum over shifted strided views, which has no pooling operation in it.
        height, width = (length // step * step for length, step in zip(shape[1:3], size, strict=True))
        views = [x[:, i : height : size[0], j : width : size[1]] for i in range(size[0]) for j in range(size[1])]
        return tf.reduce_max(tf.stack(views), 0)

    def pooled(x):
        return first_and_second(lambda values: max_pooling(values, size), [x])

    if run != "eager":
        pooled = tf.function(pooled, jit_compile=run == "xla", autograph=False)
    assert_close(pooled(x.astype("float32")), first_and_second(slices, [x]), 1e-5)


def test_ties_go_to_one_entry():
    # Both orders must choose the same one: y = max(x, x) has the gradient of x, not twice or never.
    x = tf.ones([1, 2, 2, 1])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(max_pooling(x, (2, 2)) ** 3)
        gradient = inner.gradient(loss, x)
        weights = tf.reshape(tf.range(1.0, 5.0), [1, 2, 2, 1])
        mixed = tf.reduce_sum(weights * gradient)
    # One entry e has gradient 3 x_e^2 = 3, and weight_e * 6 x_e as the derivative of it.
    chosen = np.flatnonzero(gradient)
    assert len(chosen) == 1 and np.sum(gradient) == 3
    expected = np.zeros(4)
    expected[chosen] = 6 * (chosen + 1)
    np.testing.assert_array_equal(np.ravel(outer.gradient(mixed, x)), expected)


@pytest.mark.parametrize(
    "name, function",
    [
        ("batch normalisation", lambda x: batch_normalization(x, tf.ones(1), tf.zeros(1), EPSILON)),
        ("max-pooling", lambda x: max_pooling(x, (2, 2))),
    ],
)
def test_third_derivatives_are_refused_rather_than_wrong(name, function):
    x = tf.constant(normal(1, 2, 2, 1), tf.float32)
    with tf.GradientTape() as third:
        third.watch(x)
        with tf.GradientTape() as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                loss = tf.reduce_sum(function(x) ** 3)
            gradient = tf.reduce_sum(first.gradient(loss, x) ** 2)
        gradient = tf.reduce_sum(second.gradient(gradient, x) ** 2)
    with pytest.raises(LookupError, match=f"{name} has no third derivative"):
        third.gradient(gradient, x)


def operations(function):
    """Types of all operations in the graph of a function, those of its inner functions too."""
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return [node.op for node in nodes]


def conv_step(pooling, size=8):
    base = keras.Sequential(
        [
            keras.Input((size, size, 1)),
            keras.layers.Conv2D(2, 3, padding="same"),
            keras.layers.BatchNormalization(),
            pooling,
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    meta_model = keras_maml.MetaModel(base, keras_maml.MAML(0.1, 1))
    meta_model.compile(loss="mse")

    def step():
        x = tf.constant(normal(2, 3, size, size, 1), tf.float32)
        y = tf.constant(normal(2, 3, 2), tf.float32)
        return meta_model.meta_gradients({"support_x": x, "support_y": y, "query_x": x}, y)[2]

    return tf.function(step, autograph=False)


def test_stock_layers_use_them():
    types = operations(conv_step(keras.layers.MaxPooling2D()))
    assert "MaxPoolGradGrad" not in types
    # Support, its backward pass, the cotangent of that and the backward pass again; and the query's.
    assert types.count("FusedBatchNormGradV3") == 4 and types.count("FusedBatchNormV3") == 2
    # Windows that overlap or reach over the border are TensorFlow's own.
    for pooling in (keras.layers.MaxPooling2D(3, 2), keras.layers.MaxPooling2D(3, padding="same")):
        assert "MaxPoolGradGrad" in operations(conv_step(pooling))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_pooling_layer_inside_an_episode(data_format):
    layer = keras.layers.MaxPooling2D((2, 3), data_format=data_format)
    x = tf.constant(normal(2, 6, 6, 6), tf.float32)
    with adaptation_scope("support"):
        np.testing.assert_array_equal(layer(x), keras.layers.MaxPooling2D((2, 3), data_format=data_format).call(x))
    assert layer(x).shape == ((2, 3, 2, 6) if data_format == "channels_last" else (2, 6, 3, 2))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("strides, padding", [(2, "VALID"), ([2, 2], [[0, 0], [1, 1], [1, 1], [0, 0]])])
def test_calls_that_tensorflow_takes_are_taken(strides, padding, inside):
    # The greatest of each window of 1, ..., 16 is its last entry; padding moves the windows by one.
    x = tf.reshape(tf.range(1.0, 17.0), [1, 4, 4, 1])
    expected = [6, 8, 14, 16] if padding == "VALID" else [1, 3, 4, 9, 11, 12, 13, 15, 16]
    with adaptation_scope("support") if inside else contextlib.nullcontext():
        np.testing.assert_array_equal(np.ravel(tf.nn.max_pool(x, [2, 2], strides, padding)), expected)
