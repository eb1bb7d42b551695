"""Normalisation: whose moments, of which rows, and what stays untouched.

Most layers here have epsilon = 0 and no weights, so that moments can be worked out in the head: of the supports (1, 3)
the mean is 2 and the variance 1, and they become -1 and 1.
"""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml.layers import BatchNormalization, adaptation_scope, exact_moments, statistics_of


@keras.saving.register_keras_serializable("test_layers")
class Scale(layers.Layer):
    """`scale * x`, one meta-learned weight that starts at 1."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs):
        return self.scale * inputs


def plain(kind=BatchNormalization, *args, **kwargs):
    """A normalisation without weights and epsilon."""
    return kind(*args, **{"epsilon": 0.0, "scale": False, "center": False, **kwargs})


def column(*values):
    """`(1, examples, 1)`: one task, one feature."""
    return np.array(values, "float32")[None, :, None]


EPISODE = {"support_x": column(1, 3), "support_y": column(0, 0), "query_x": column(2, 3, 5, 8)}
QUERY_Y = column(0, 0, 0, 0)
QUERIES_BY_THEMSELVES = (np.array([2, 3, 5, 8]) - 4.5) / np.sqrt((6.25 + 2.25 + 0.25 + 12.25) / 4)


def meta_model_of(normalization, algorithm=None, loss="mse"):
    """Predicts `scale * normalised x`. Rates are so small that no weight moves, but for other algorithms."""
    model = keras.Sequential([keras.Input((1,)), normalization, Scale()])
    meta_model = keras_maml.MetaModel(model, algorithm or keras_maml.MAML(1e-30, 1), "parallel")
    meta_model.compile(optimizer=keras.optimizers.SGD(1e-30), loss=loss)
    return meta_model


def normalised_queries(normalization):
    """At evaluation, and in `fit`."""
    meta_model = meta_model_of(normalization)
    return meta_model.predict(EPISODE, verbose=0)[0, :, 0], meta_model.meta_gradients(EPISODE, QUERY_Y)[1][0, :, 0]


KNOWN_MOMENTS = {"moving_mean_initializer": "ones", "moving_variance_initializer": keras.initializers.Constant(4.0)}
BY_KNOWN_MOMENTS = [0.5, 1, 2, 3.5]  # the queries less 1, over 2


# --------------------------------------------------------------------------------------------------- whose moments


@pytest.mark.parametrize("kind", [layers.BatchNormalization, BatchNormalization])
def test_batch_statistics_are_those_of_the_queries_in_every_phase(kind):
    for outputs in normalised_queries(plain(kind, **KNOWN_MOMENTS)):
        np.testing.assert_allclose(outputs, QUERIES_BY_THEMSELVES, rtol=1e-5)


def test_support_statistics_are_those_of_the_supports_in_every_phase():
    # The queries less 2, over 1.
    for outputs in normalised_queries(plain(BatchNormalization, "support", **KNOWN_MOMENTS)):
        np.testing.assert_allclose(outputs, [0, 1, 3, 6], rtol=1e-5, atol=1e-6)


def test_moving_statistics_are_learned_ones_at_evaluation_and_of_the_batch_in_fit():
    evaluation, training = normalised_queries(plain(BatchNormalization, "moving", **KNOWN_MOMENTS))
    np.testing.assert_allclose(evaluation, BY_KNOWN_MOMENTS, rtol=1e-5)
    np.testing.assert_allclose(training, QUERIES_BY_THEMSELVES, rtol=1e-5)


@pytest.mark.parametrize("kind", [(layers.BatchNormalization,), (BatchNormalization, "support")])
def test_frozen_layers_use_their_moving_moments(kind):
    layer = plain(*kind, trainable=False, **KNOWN_MOMENTS)
    assert statistics_of(layer) == "moving"
    for outputs in normalised_queries(layer):
        np.testing.assert_allclose(outputs, BY_KNOWN_MOMENTS, rtol=1e-5)


def test_support_moments_are_those_of_the_weights_that_judge_the_queries():
    # One weight s in front of the normalisation, with epsilon = 1: of the supports s * (1, 3) the mean is 2 s, the
    # variance s^2, and the second becomes s / sqrt(s^2 + 1), the loss. From s = 1 a step of 1 down its slope
    # (s^2 + 1)^-1.5 leads to phi = 1 - 2^-1.5. The queries are then normalised by 2 phi and phi^2, not by 2 and 1.
    normalization = plain(BatchNormalization, "support", epsilon=1.0)
    model = keras.Sequential([keras.Input((1,)), Scale(), normalization])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(1.0, 1), "parallel")
    meta_model.compile(loss=lambda y, predictions: y[:, 0] * predictions[:, 0])
    x = {**EPISODE, "support_y": column(0, 2)}
    phi = 1 - 2**-1.5
    expected = phi * np.array([0, 1, 3, 6]) / np.sqrt(phi**2 + 1)
    learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
    for outputs in (
        meta_model.predict(x, verbose=0)[0],
        meta_model.meta_gradients(x, QUERY_Y)[1][0],
        learner.predict(x["query_x"][0], batch_size=1, verbose=0),
    ):
        np.testing.assert_allclose(outputs[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_batch_statistics_do_not_switch_dropout_on():
    model = keras.Sequential([keras.Input((64,)), plain(layers.BatchNormalization), layers.Dropout(0.5), Scale()])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(1e-30, 1), "parallel")
    meta_model.compile(loss="mse")
    queries = np.random.default_rng(0).normal(size=(1, 4, 64)).astype("float32")
    x = {"support_x": queries, "support_y": queries, "query_x": queries}
    normalised = (queries - queries.mean(1)) / queries.std(1)
    np.testing.assert_allclose(meta_model.predict(x, verbose=0), normalised, rtol=1e-3, atol=1e-5)
    meta_model.evaluate(x, queries, verbose=0)
    np.testing.assert_allclose(meta_model(x), normalised, rtol=1e-3, atol=1e-5)
    assert np.any(np.asarray(meta_model.meta_gradients(x, queries)[1]) == 0)


def test_batch_statistics_outside_a_meta_model():
    # Those of the batch with `training=False` too; moving moments are neither read nor written, unless it is frozen.
    layer = plain(BatchNormalization, "batch", **KNOWN_MOMENTS)
    for training in (False, True, None):
        np.testing.assert_allclose(layer(column(1, 3)[0], training=training), [[-1], [1]], rtol=1e-6)
    np.testing.assert_array_equal([layer.moving_mean[0], layer.moving_variance[0]], [1, 4])
    layer.trainable = False
    np.testing.assert_allclose(layer(column(1, 3)[0], training=True), [[0], [1]], rtol=1e-6)


@pytest.mark.parametrize("statistics", ["support", "moving"])
def test_other_statistics_outside_a_meta_model_are_as_in_keras(statistics):
    layer = plain(BatchNormalization, statistics, momentum=0.9)
    np.testing.assert_allclose(layer(column(1, 3)[0], training=False), [[1], [3]], rtol=1e-6)
    np.testing.assert_allclose(layer(column(1, 3)[0], training=True), [[-1], [1]], rtol=1e-6)
    # 0.9 * 0 + 0.1 * 2 and 0.9 * 1 + 0.1 * 1
    np.testing.assert_allclose([layer.moving_mean[0], layer.moving_variance[0]], [0.2, 1.0], rtol=1e-6)


def test_other_axes():
    # Channels first: moments of axes 0 and 2, and gamma and beta along axis 1.
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
    layer = BatchNormalization(axis=1, epsilon=0.1, gamma_initializer="random_normal", beta_initializer="random_normal")
    centred = x - x.mean((0, 2), keepdims=True)
    expected = centred / np.sqrt(x.var((0, 2), keepdims=True) + 0.1)
    with adaptation_scope("query"):
        outputs = layer(x)
    gamma, beta = (np.asarray(v)[:, None] for v in (layer.gamma, layer.beta))
    np.testing.assert_allclose(outputs, gamma * expected + beta, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------ rows that do not count

PADDING = 1e30  # its square is infinite in float32, and any trace of it would show


@pytest.mark.parametrize("make", [
    lambda: plain(layers.BatchNormalization),
    lambda: plain(BatchNormalization, "support"),
    lambda: keras.Sequential([layers.Reshape((1, 1, 1)), layers.BatchNormalization(), layers.Flatten()]),
], ids=["batch", "support", "image"])
def test_rows_of_weight_zero_reach_no_moment(make):
    # The same with padded rows as without them: loss, predictions, meta-gradients.
    support_weight, query_weight = np.array([[0.5, 2]], "float32"), np.array([[1, 1, 2, 1]], "float32")
    alone = meta_model_of(make()).meta_gradients({**EPISODE, "support_weight": support_weight}, QUERY_Y, query_weight)
    x = {
        "support_x": column(1, PADDING, 3),
        "support_y": column(0, 0, 0),
        "query_x": column(2, 3, 5, 8, PADDING),
        "support_weight": np.array([[0.5, 0, 2]], "float32"),
    }
    weight = np.array([[1, 1, 2, 1, 0]], "float32")
    loss, predictions, gradients = meta_model_of(make()).meta_gradients(x, column(0, 0, 0, 0, 0), weight)
    for actual, expected in ((loss, alone[0]), (predictions[:, :4], alone[1]), *zip(gradients, alone[2], strict=True)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_weight_zero_reach_no_moving_moment():
    # With momentum 0 the queries leave their mean 4.5 and their variance 5.25.
    layer = plain(BatchNormalization, "moving", momentum=0.0)
    x = {**EPISODE, "query_x": column(2, 3, 5, 8, 99)}
    meta_model_of(layer).train_on_batch(x, column(0, 0, 0, 0, 0), np.array([[1, 1, 1, 1, 0]], "float32"))
    np.testing.assert_allclose([layer.moving_mean[0], layer.moving_variance[0]], [4.5, 5.25], rtol=1e-5)


def test_masked_steps_reach_no_moment():
    # Steps 1 and 3 count, the third is masked.
    steps = np.array([[[1.0], [3.0], [PADDING]]], "float32")
    with adaptation_scope("support"):
        outputs = plain()(steps, mask=tf.constant([[True, True, False]]))
    np.testing.assert_allclose(outputs[0, :2, 0], [-1, 1], rtol=1e-6)


def test_masked_steps_and_rows_of_weight_zero():
    # Only the second row counts, and of it steps 1 and 3.
    steps = np.array([[[PADDING], [7.0], [9.0]], [[1.0], [3.0], [PADDING]]], "float32")
    with adaptation_scope("support", tf.constant([0.0, 1.0])):
        outputs = plain()(steps, mask=tf.constant([[True, True, True], [True, True, False]]))
    np.testing.assert_allclose(outputs[1, :2, 0], [-1, 1], rtol=1e-6)


def test_weights_of_examples_that_were_merged_with_another_axis_are_refused():
    with adaptation_scope("support", tf.ones(3)):
        with pytest.raises(ValueError, match="normalises 6 rows, and the weights are for 3 examples"):
            plain()(tf.ones((6, 1)))


# ------------------------------------------------------------------------------------------------- what is written


def with_everything():
    model = keras.Sequential([
        keras.Input((3,)),
        layers.Dense(4),
        layers.BatchNormalization(),
        BatchNormalization("support"),
        BatchNormalization("moving"),
        layers.Dropout(0.5),
        layers.Dense(2),
    ])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 1), "parallel")
    meta_model.compile(loss="mse", optimizer="adam")
    generator = np.random.default_rng(0)
    x = {"support_x": (3, 4, 3), "support_y": (3, 4, 2), "query_x": (3, 5, 3)}
    x = {name: generator.normal(size=shape).astype("float32") for name, shape in x.items()}
    return meta_model, x, generator.normal(size=(3, 5, 2)).astype("float32")


def test_evaluation_and_adaptation_write_nothing():
    meta_model, x, y = with_everything()
    meta_model.fit(x, y, verbose=0)  # after which all state is off its initial value
    before = [v.numpy() for v in meta_model.variables]
    meta_model.evaluate(x, y, verbose=0)
    meta_model.predict(x, verbose=0)
    meta_model(x)
    meta_model(x, training=True)
    meta_model.adapt(x["support_x"][0], x["support_y"][0])
    meta_model.meta_gradients(x, y)
    metrics = {id(v) for m in meta_model.metrics for v in m.variables}
    for variable, value in zip(meta_model.variables, before, strict=True):
        if variable is not meta_model.outer_step and id(variable) not in metrics:
            np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def test_fit_writes_moving_moments_only():
    meta_model, x, y = with_everything()
    state = meta_model.model.non_trainable_variables
    before = [v.numpy() for v in state]
    meta_model.fit(x, y, verbose=0)
    changed = {v.path for v, value in zip(state, before, strict=True) if np.any(value != np.asarray(v))}
    moving = meta_model.model.layers[3]
    assert changed == {moving.moving_mean.path, moving.moving_variance.path}


def test_moving_moments_are_the_mean_over_tasks_of_what_each_task_makes_of_them():
    # momentum 1/2, one inner step: start, then the supports, then the queries.
    # Task 1, means 2 and 4.5:  0 -> 1 -> 2.75.     Variances 1 and 5.25: 1 -> 1 -> 3.125.
    # Task 2, means 6 and 1:    0 -> 3 -> 2.        Variances 4 and 0:    1 -> 2.5 -> 1.25.
    layer = plain(BatchNormalization, "moving", momentum=0.5, epsilon=1e-3)
    x = {
        "support_x": np.concatenate([column(1, 3), column(4, 8)]),
        "support_y": np.zeros((2, 2, 1), "float32"),
        "query_x": np.concatenate([column(2, 3, 5, 8), column(1, 1, 1, 1)]),
    }
    meta_model_of(layer).fit(x, np.zeros((2, 4, 1), "float32"), verbose=0)
    np.testing.assert_allclose(layer.moving_mean[0], (2.75 + 2) / 2, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance[0], (3.125 + 1.25) / 2, rtol=1e-6)


@pytest.mark.parametrize("task_mapping", ["parallel", "vectorized"])
def test_frozen_weights_and_constants_are_not_written(task_mapping):
    # The mean over three tasks of a weight that none of them changes is the weight but for rounding, (w + w + w) / 3:
    # so it must not be written back, not even once.
    constant = layers.Normalization(mean=[0.1, 0.2, 0.7], variance=[1.1, 1.2, 1.3])
    frozen = layers.Dense(64, trainable=False)
    model = keras.Sequential([keras.Input((3,)), constant, frozen, layers.BatchNormalization(trainable=False), Scale()])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 1), task_mapping)
    meta_model.compile(optimizer="sgd", loss="mse")
    before = [v.numpy() for v in model.non_trainable_variables]
    x = {name: np.ones((3, 2, 64 if name == "support_y" else 3), "float32") for name in EPISODE}
    meta_model.fit(x, np.ones((3, 2, 64), "float32"), epochs=3, verbose=0)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


# ----------------------------------------------------------------------------------------- inside and outside the scope


def hessian_of_variance(moments=None):
    """Of the values 1 and 3. The variance is ((a - b) / 2)^2: [[1/2, -1/2], [-1/2, 1/2]]."""
    x = tf.constant([1.0, 3.0])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            _, variance = (moments or tf.nn.moments)(x, [0])
        gradient = inner.gradient(variance, x)
    return outer.jacobian(gradient, x).numpy()


EXACT = [[0.5, -0.5], [-0.5, 0.5]]
STOCK = [[1.0, 0.0], [0.0, 1.0]]  # the mean is taken for a constant: (a - mean) + (b - mean) differentiate to 1 each


def test_moments_are_exact_inside_the_scope_only():
    np.testing.assert_allclose(hessian_of_variance(exact_moments), EXACT)
    np.testing.assert_allclose(hessian_of_variance(), STOCK)
    with adaptation_scope("support"):
        np.testing.assert_allclose(hessian_of_variance(), EXACT)
        with adaptation_scope("query"):
            pass
        np.testing.assert_allclose(hessian_of_variance(), EXACT)
    with pytest.raises(RuntimeError), adaptation_scope("support"):
        raise RuntimeError
    np.testing.assert_allclose(hessian_of_variance(), STOCK)


def test_other_threads_do_not_see_the_scope():
    # A server or a data pipeline may use Keras while a task adapts; replicas run in threads of their own.
    layer = plain(layers.BatchNormalization, momentum=0.9)
    layer.build((None, 1))
    seen = []

    def elsewhere():
        seen.append(hessian_of_variance())
        seen.append(np.asarray(layer(column(1, 3)[0], training=False)))
        layer(column(1, 3)[0], training=True)
        with adaptation_scope("support"):
            seen.append(hessian_of_variance())

    with adaptation_scope("support"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        np.testing.assert_allclose(layer(column(1, 3)[0], training=False), [[-1], [1]])
    np.testing.assert_allclose(hessian_of_variance(), STOCK)
    np.testing.assert_allclose(seen[0], STOCK)
    np.testing.assert_allclose(seen[1], [[1], [3]])
    np.testing.assert_allclose(seen[2], EXACT)
    np.testing.assert_allclose(layer.moving_mean[0], 0.2, rtol=1e-6)


def test_stock_layers_train_as_ever_outside_the_scope():
    # One step of gradient descent by hand: the layer normalises by the batch, learns gamma and beta, and moves its
    # moments; with the loss mean(y) = beta, the gradient of beta is 1 and that of gamma the mean of -1 and 1.
    model = keras.Sequential([keras.Input((1,)), layers.BatchNormalization(epsilon=0.0, momentum=0.9)])
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss=lambda y, predictions: predictions)
    model.fit(column(1, 3)[0], column(0, 0)[0], verbose=0)
    gamma, beta, moving_mean, moving_variance = (float(v[0]) for v in model.get_weights())
    np.testing.assert_allclose([gamma, beta, moving_mean, moving_variance], [1.0, -0.5, 0.2, 1.0], rtol=1e-5)
    np.testing.assert_allclose(model.predict(column(1, 3)[0], verbose=0), [[0.3], [2.3]], rtol=1e-5)  # x - 0.2 - 0.5


def test_outside_the_scope_the_original_functions_run():
    x = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype("float32")
    kernel, bias = np.ones((1, 1, 3, 3), "float32"), np.ones(3, "float32")
    for actual, expected in zip(tf.nn.moments(x, [0, 1]), tf.nn.moments.__wrapped__(x, [0, 1]), strict=True):
        np.testing.assert_array_equal(actual, expected)
    graph = tf.function(lambda: tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)).get_concrete_function().graph
    assert "BiasAdd" in [op.type for op in graph.get_operations()]
    layer = layers.BatchNormalization()
    layer.build(x.shape)
    np.testing.assert_array_equal(layer(x, training=True), type(layer).call.__wrapped__(layer, x, training=True))


def test_functions_are_routed_once():
    before = tf.nn.moments, tf.nn.bias_add, layers.BatchNormalization.call
    keras_maml.layers._route_once()
    assert before == (tf.nn.moments, tf.nn.bias_add, layers.BatchNormalization.call)


@pytest.mark.parametrize("data_format", [None, "NHWC", "N..C", "NCHW"])
def test_bias_addition_is_the_same_inside_the_scope(data_format):
    x, bias = np.arange(24, dtype="float32").reshape(2, 3, 4, 1) * np.ones(3, "float32"), np.array([1, 2, 3], "float32")
    x = np.moveaxis(x, 3, 1) if data_format == "NCHW" else x
    expected = tf.nn.bias_add(x, bias, data_format)
    with adaptation_scope("support"):
        np.testing.assert_array_equal(tf.nn.bias_add(x, bias, data_format=data_format), expected)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [[0], [0, 2], [-1], 1])
def test_exact_moments_have_the_values_of_the_stock_ones(axes, keepdims):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 5, 6)).astype("float32")
    results = (function(x, axes, keepdims=keepdims) for function in (exact_moments, tf.nn.moments))
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------- numeric formats


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_moments_of_half_precision_are_taken_in_float32(dtype):
    # Deviations of 1000 have squares of 1e6, beyond float16.
    layer = plain(layers.BatchNormalization, dtype=dtype)
    with adaptation_scope("support"):
        outputs = layer(tf.constant([[1024.0], [3072.0]], dtype))
        moments = tf.nn.moments(tf.constant([0.0] * 7 + [640.0], dtype), [0])
    assert outputs.dtype == dtype
    np.testing.assert_array_equal(tf.cast(outputs, tf.float32), [[-1], [1]])
    # Mean 80, variance (7 * 80^2 + 560^2) / 8 = 44800, in the type that came, though 560^2 is beyond float16.
    assert [m.dtype for m in moments] == [dtype] * 2
    np.testing.assert_allclose([float(m) for m in moments], [80, 44800], rtol=4e-3)


def test_mixed_precision_keeps_float32_weights():
    layer = layers.BatchNormalization(epsilon=0.0, dtype="mixed_float16")
    with adaptation_scope("support"):
        outputs = layer(tf.constant([[1024.0], [3072.0]]))
    assert outputs.dtype == "float16" and layer.gamma.dtype == layer.moving_mean.dtype == "float32"
    np.testing.assert_array_equal(outputs, [[-1], [1]])


def derivatives_to_second_order(layer, x, weights, directions):
    """Outputs, the gradient of `sum(weights * outputs)`, and the gradient of that along `directions`."""
    sources = [x, layer.gamma.value, layer.beta.value]
    with tf.GradientTape() as outer:
        outer.watch(sources)
        with tf.GradientTape() as inner:
            inner.watch(sources)
            with adaptation_scope("support"):
                outputs = layer(x)
            total = tf.reduce_sum(weights * tf.tanh(outputs))  # not linear, or the third group were half zeros
        gradients = inner.gradient(total, sources)
        along = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(gradients, directions, strict=True)])
    return [outputs, *gradients, *outer.gradient(along, sources)]


def test_the_fused_operation_equals_the_composite_to_second_order():
    # Images in float32 take one fused operation; it knows no float64, which takes the composite.
    generator = np.random.default_rng(0)
    x, weights = generator.normal(2.0, 3.0, size=(2, 6, 5, 4, 3))
    directions = [generator.normal(size=x.shape), *generator.normal(size=(2, 3))]
    results, operations = [], []
    for dtype in ("float32", "float64"):
        layer = layers.BatchNormalization(epsilon=0.5, dtype=dtype)
        layer.build(x.shape)
        layer.gamma.assign(generator.normal(size=3) if dtype == "float32" else results[0][0])
        layer.beta.assign([0.3, -0.2, 0.1])
        arguments = [tf.constant(x, dtype), tf.constant(weights, dtype), [tf.constant(d, dtype) for d in directions]]
        step = tf.function(lambda x, w, d, layer=layer: derivatives_to_second_order(layer, x, w, d), autograph=False)
        concrete = step.get_concrete_function(*arguments)
        operations.append({op.type for op in concrete.graph.get_operations()})
        results.append([np.asarray(a, "float64") for a in (layer.gamma, *step(*arguments))])
    assert "FusedBatchNormV3" in operations[0] and "FusedBatchNormV3" not in operations[1]
    for fused, composite in zip(*results, strict=True):
        # float32 has 7 digits, and sums of 120 products of size 10 lose two.
        assert np.abs(fused - composite).max() < 1e-4 * np.abs(composite).max()


# ----------------------------------------------------------------------------------------------------- configuration


def test_configuration_round_trips():
    layer = BatchNormalization("support", momentum=0.7, name="norm")
    for copy in (
        BatchNormalization.from_config(layer.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)),
    ):
        assert type(copy) is BatchNormalization
        assert copy.get_config() == layer.get_config() and copy.statistics == "support" and copy.momentum == 0.7


def test_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match=r"one of \('batch', 'support', 'moving'\). Received: statistics='query'"):
        BatchNormalization("query")


def test_batch_renormalization_is_refused():
    with pytest.raises(ValueError, match="has `renorm=True`.*'moving'"):
        meta_model_of(layers.BatchNormalization(renorm=True)).predict(EPISODE, verbose=0)
