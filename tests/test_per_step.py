"""Normalisation with rows for each inner step: which row a call reads and moves, by NumPy and by hand."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import inner_loop
from keras_maml.layers import PerStepBatchNormalization, per_step_normalization

SUPPORTS, QUERIES = np.array([[1.0, 3.0], [4.0, 8.0]]), np.array([[2.0, 3.0, 5.0, 8.0], [1.0, 1.0, 1.0, 2.0]])


@keras.saving.register_keras_serializable("test_per_step")
class Scale(layers.Layer):
    """`scale * x`, one weight that starts at 1."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs):
        return self.scale * inputs


def scaled(steps=2, made_for=2, rate=0.5, evaluation_steps=None, **kwargs):
    """Predicts `n(scale * x)`, n the normalisation with epsilon 1; the target is 0."""
    settings = {"epsilon": 1.0, "momentum": 0.5, "scale": False, "center": False, **kwargs}
    model = keras.Sequential([keras.Input((1,)), Scale(), PerStepBatchNormalization(made_for, **settings)])
    algorithm = keras_maml.MAML(rate, steps, evaluation_steps)
    if settings["scale"] or settings["center"]:
        algorithm = keras_maml.Algorithm(
            algorithm.rule, algorithm.meta_gradient, steps, evaluation_steps, layers=keras_maml.exclude(model.layers[1])
        )
    meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
    meta_model.compile(keras.optimizers.SGD(1e-30), "mse", run_eagerly=True)
    return meta_model, model.layers[1]


def batch(tasks=2):
    x = {"support_x": SUPPORTS, "support_y": np.zeros((2, 2)), "query_x": QUERIES}
    return {name: value[:tasks, :, None].astype("float32") for name, value in x.items()}, np.zeros((tasks, 4, 1), "f")


def in_training(supports, queries, steps=2, rate=0.5):
    """Rows of the moving moments after one task, from rows of 0 and 1, momentum 1/2."""
    mean, variance, scale = np.zeros(3), np.ones(3), 1.0
    for step in range(steps + 1):
        x = supports if step < steps else queries
        mean[step] = (mean[step] + scale * x.mean()) / 2
        variance[step] = (variance[step] + scale**2 * x.var()) / 2
        # n = a (x - m) / sqrt(a^2 v + 1), dn / da = (x - m) (a^2 v + 1)^(-3/2), loss: the mean of n^2
        root = np.sqrt(scale**2 * x.var() + 1)
        centred = x - x.mean()
        scale -= rate * np.mean(2 * scale * centred / root * centred / root**3)
    return mean, variance


def in_evaluation(supports, queries, mean, variance, steps=2, rate=0.5):
    """Predictions on the queries with the row of the steps; steps beyond the rows use the last. The steps are those of
    training, by the moments of the supports."""
    scale = 1.0
    for _ in range(steps):
        root = np.sqrt(scale**2 * supports.var() + 1)
        centred = supports - supports.mean()
        scale -= rate * np.mean(2 * scale * centred / root * centred / root**3)
    row = min(steps, len(mean) - 1)
    return (scale * queries - mean[row]) / np.sqrt(variance[row] + 1)


@pytest.mark.parametrize("most", [10, 0])
def test_moving_moments_by_hand(most, monkeypatch):
    # Unrolled, and in a loop. The mean over two tasks, each from where the batch began.
    monkeypatch.setattr(inner_loop, "MOST_UNROLLED_STEPS", most)
    meta_model, layer = scaled()
    meta_model.train_on_batch(*batch())
    rows = [in_training(s, q) for s, q in zip(SUPPORTS, QUERIES, strict=True)]
    np.testing.assert_allclose(layer.moving_mean[:, 0], np.mean([mean for mean, _ in rows], 0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance[:, 0], np.mean([variance for _, variance in rows], 0), rtol=1e-5)
    assert int(layer.inner_step.numpy()) == 0


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_evaluation_reads_the_rows_by_hand(steps):
    mean, variance = np.array([0.5, 1.0, 3.0]), np.array([1.0, 4.0, 2.0])
    meta_model, layer = scaled(rate=0.1, evaluation_steps=steps)
    layer.moving_mean.assign(mean[:, None])
    layer.moving_variance.assign(variance[:, None])
    predictions = meta_model.predict(batch()[0], verbose=0)[:, :, 0]
    expected = [
        in_evaluation(s, q, mean, variance, steps, 0.1) for s, q in zip(SUPPORTS, QUERIES, strict=True)
    ]
    np.testing.assert_allclose(predictions, expected, rtol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean[:, 0], mean)  # nothing is written
    layer.moving_mean.assign(mean[:, None] + 1)
    assert np.abs(meta_model.predict(batch()[0], verbose=0)[:, :, 0] - expected).max() > 0.1
    learner = meta_model.adapt(SUPPORTS[0][:, None], np.zeros((2, 1)))
    assert type(learner.layers[1]) is layers.BatchNormalization and learner.layers[1].moving_mean.shape == (1,)
    np.testing.assert_allclose(learner(batch()[0]["query_x"][0]), meta_model(batch()[0])[0], rtol=1e-5)


def test_stations_of_one_adaptation_read_their_rows():
    # Evaluation after 0, 1, 2 and 3 steps, from one adaptation.
    mean, variance = np.array([0.5, 1.0, 3.0]), np.array([1.0, 4.0, 2.0])
    meta_model, layer = scaled(rate=0.1)
    layer.moving_mean.assign(mean[:, None])
    layer.moving_variance.assign(variance[:, None])
    report = keras_maml.evaluate_episodes(meta_model, batch(), tasks=2, steps=(0, 1, 2, 3), verbose=0)
    for column, steps in enumerate((0, 1, 2, 3)):
        expected = [
            np.mean(in_evaluation(s, q, mean, variance, steps, 0.1) ** 2)
            for s, q in zip(SUPPORTS, QUERIES, strict=True)
        ]
        np.testing.assert_allclose(report.values["loss"][:, column], expected, rtol=1e-5)


def test_weights_of_the_step_are_read():
    # Rate 1e-30: only the row matters. The supports' loss, at row 0, is that before any step.
    meta_model, layer = scaled(rate=1e-30, statistics="batch", scale=True, center=True)
    layer.gamma.assign([[1.0], [2.0], [3.0]])
    layer.beta.assign([[10.0], [20.0], [30.0]])
    plain = (QUERIES - QUERIES.mean(1, keepdims=True)) / np.sqrt(QUERIES.var(1, keepdims=True) + 1)
    x, y = batch()
    np.testing.assert_allclose(meta_model.meta_gradients(x, y)[1][:, :, 0], 3 * plain + 30, rtol=1e-6)
    report = keras_maml.evaluate_episodes(meta_model, (x, y), tasks=2, steps=(0, 1, 5), verbose=0)
    for column, (gamma, beta) in enumerate(((1, 10), (2, 20), (3, 30))):
        expected = np.mean((gamma * plain + beta) ** 2, 1)
        np.testing.assert_allclose(report.values["loss"][:, column], expected, rtol=1e-6)
    assert layer.moving_mean.shape == (1,) and layer.gamma.shape == (3, 1)
    # Row 0 gets no gradient from queries, and supports move nothing at this rate.
    position = [v.path for v in meta_model.trainable_variables].index(layer.gamma.path)
    of_gamma = meta_model.meta_gradients(x, y)[2][position]
    np.testing.assert_allclose(of_gamma[:2], 0, atol=1e-20)
    np.testing.assert_allclose(of_gamma[2, 0], np.mean(2 * (3 * plain + 30) * plain), rtol=1e-4)


@keras.saving.register_keras_serializable("test_per_step")
class Counted(layers.Layer):
    """`x + inner_step`: a layer of a user that asks for the step."""

    def build(self, input_shape):
        self.inner_step = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs):
        return inputs + tf.cast(self.inner_step, inputs.dtype)


@pytest.mark.parametrize("most", [10, 0])
def test_layers_of_a_user_find_the_step(most, monkeypatch):
    # prediction: w x + k, with x = 1 and w = 0. Supports of target 1, rate 1/2 on (p - 1)^2, of derivative 2 (p - 1):
    # k = 0: w = 0 - (0 - 1) = 1; k = 1: w = 1 - (1 + 1 - 1) = 0. The queries get 0 + 2.
    monkeypatch.setattr(inner_loop, "MOST_UNROLLED_STEPS", most)
    dense = layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), dense, Counted()])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.5, 2), "parallel")
    meta_model.compile("sgd", "mse", run_eagerly=True)
    x = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
    np.testing.assert_allclose(meta_model(x), [[[2.0]]])
    np.testing.assert_allclose(meta_model.adapt(x["support_x"][0], x["support_y"][0])(x["query_x"][0]), [[2.0]])


def test_each_of_the_two_alone():
    moments = PerStepBatchNormalization(2, weights_per_step=False)
    weights = PerStepBatchNormalization(2, moments_per_step=False)
    for layer in (moments, weights):
        layer.build((None, 4))
    assert (moments.gamma.shape, moments.moving_mean.shape) == ((4,), (3, 4))
    assert (weights.gamma.shape, weights.moving_mean.shape) == ((3, 4), (4,))
    # Moving moments without rows: every call of a task moves them, in turn.
    meta_model, layer = scaled(rate=1e-30, moments_per_step=False, scale=True)
    meta_model.train_on_batch(*batch(1))
    np.testing.assert_allclose(layer.moving_mean, [(2 / 2 + 2) / 4 + QUERIES[0].mean() / 2], rtol=1e-6)


def test_fused_operation_gives_the_moments_of_the_composite():
    x = tf.constant(np.random.default_rng(0).normal(1.0, 2.0, (3, 4, 5, 2)).astype("float32"))
    layer = PerStepBatchNormalization(1, momentum=0.0)
    layer.build(x.shape)
    with keras_maml.layers.adaptation_scope("support"):
        y = layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean[0], np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance[0], np.var(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean[1], [0, 0])


def test_padded_rows_reach_no_moment():
    meta_model, layer = scaled()
    x, y = batch(1)
    x["support_x"] = np.concatenate([x["support_x"], np.full((1, 1, 1), 1e30, "f")], 1)
    x["support_y"] = np.zeros((1, 3, 1), "f")
    x["support_weight"] = np.array([[1.0, 1.0, 0.0]])
    meta_model.train_on_batch(x, y)
    np.testing.assert_allclose(layer.moving_mean[:, 0], in_training(SUPPORTS[0], QUERIES[0])[0], rtol=1e-5)


def classifier():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.Dense(3, use_bias=False)(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(x)))


def test_the_whole_of_maml_plus_plus(tmp_path):
    # Trained, saved, loaded, exported and adapted: all the same predictions.
    model = classifier()
    model.layers[2].gamma.assign([1.0, 2.0, 3.0])
    model = per_step_normalization(model, steps=2)
    layer = model.layers[2]
    np.testing.assert_array_equal(layer.gamma, [[1.0, 2.0, 3.0]] * 3)
    meta_model = keras_maml.MetaModel(model, keras_maml.MAMLPlusPlus(0.1, 2, evaluation_steps=3), "parallel")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    meta_model.compile("adam", loss, metrics=["accuracy"], run_eagerly=True)
    assert [v.path for v, adapts in zip(model.trainable_variables, meta_model.mask, strict=True) if not adapts] == [
        layer.gamma.path, layer.beta.path
    ]
    numbers = np.random.default_rng(0)
    x = {"support_x": numbers.normal(size=(2, 4, 4)), "query_x": numbers.normal(size=(2, 6, 4))}
    x = {name: value.astype("float32") for name, value in x.items()}
    x["support_y"], y = np.array([[0, 1, 0, 1]] * 2, "int32"), np.array([[0, 1, 0, 1, 1, 0]] * 2, "int32")
    before = [v.numpy() for v in meta_model.weights]
    meta_model.fit(tf.data.Dataset.from_tensors((x, y)), epochs=2, verbose=0)
    still = [v.path for v, w in zip(meta_model.weights, before, strict=True) if np.array_equal(v, w)]
    assert all(path.endswith(("inner_step", "step_weights", "order")) for path in still), still
    meta_model.meta_gradient.anneal(0.05)
    expected = meta_model.predict(x, verbose=0)
    meta_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.meta_gradient.step_weights, [0.25, 0.75])
    assert int(loaded.meta_gradient.order.numpy()) == 1
    loaded.export(tmp_path / "served")
    served = tf.saved_model.load(str(tmp_path / "served")).signatures
    task = {name: tf.constant(value[0]) for name, value in x.items()}
    whole = served["serving_default"](**task)["predictions"]
    adapted = served["adapt"](support_x=task["support_x"], support_y=task["support_y"])
    in_two = served["predict"](query_x=task["query_x"], **adapted)["predictions"]
    learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
    learner.save(tmp_path / "learner.keras")
    again = keras.models.load_model(tmp_path / "learner.keras")
    for predictions in (whole, in_two, learner(task["query_x"]), again(task["query_x"])):
        np.testing.assert_allclose(predictions, expected[0], rtol=1e-4, atol=1e-5)
    report = keras_maml.evaluate_episodes(meta_model, (x, y), tasks=2, steps=(0, 2), verbose=0)
    words = "MultiStep(first_order_share=0.5, multi_step_share=0.1), adapts all but normalization"
    assert words in report.protocol["algorithm"]
    assert "weights and moments of each of 2 steps" in report.protocol["normalisation"]
    card = meta_model.card(report, tmp_path / "card")
    assert card["algorithm"]["meta_gradient"]["config"]["multi_step_share"] == 0.1


def test_learners_of_models_without_a_config_keep_one_row():
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.norm, self.head = PerStepBatchNormalization(1, "batch"), layers.Dense(1)

        def call(self, x):
            return self.head(self.norm(x))

        def get_config(self):
            return {"name": self.name}

    model = Own()
    x, y = batch()
    model(x["support_x"][0])
    model.norm.gamma.assign([[1.0], [2.0]])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 1))
    meta_model.compile("sgd", "mse", run_eagerly=True)
    with pytest.warns(UserWarning, match="have lost the rows of other steps"):
        learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
    assert type(learner.norm) is keras_maml.layers.BatchNormalization and learner.norm.gamma.shape == (1,)
    np.testing.assert_allclose(learner(x["query_x"][0]), meta_model(x)[0], rtol=1e-5)
    with pytest.raises(ValueError, match="must be a built Sequential or Functional model"):
        per_step_normalization(model, 1)


def test_models_are_not_cut_below_such_a_layer():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2), PerStepBatchNormalization(1, "batch", name="norm"), layers.Dense(1)]
    )
    with pytest.warns(UserWarning, match="layer 'norm' is another one in every inner step"):
        keras_maml.MetaModel(model, keras_maml.ANIL(0.1, 1))


def test_what_is_refused():
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="`steps` must be an integer of at least 1"):
            PerStepBatchNormalization(steps)
        with pytest.raises(ValueError, match="^`steps` must be an integer of at least 1"):
            per_step_normalization(keras.Sequential([keras.Input((3,)), layers.BatchNormalization()]), steps)
    with pytest.raises(ValueError, match="`statistics` must be one of"):
        PerStepBatchNormalization(1, "none")
    with pytest.raises(ValueError, match="`weights_per_step` must be"):
        PerStepBatchNormalization(1, weights_per_step=None)
    with pytest.raises(ValueError, match="no moving moments are read"):
        PerStepBatchNormalization(1, "batch", moments_per_step=True)
    with pytest.raises(ValueError, match="Nothing of this layer differs by step"):
        PerStepBatchNormalization(1, "batch", weights_per_step=False)
    with pytest.raises(ValueError, match="renorm"):
        PerStepBatchNormalization(1, renorm=True)
    with pytest.raises(ValueError, match="has no batch normalisation to replace"):
        per_step_normalization(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), 1)
    with pytest.raises(ValueError, match="is made for 2 inner steps, and the algorithm makes 1"):
        scaled(steps=1)


def test_rows_that_would_never_learn_are_refused():
    def made(algorithm, **kwargs):
        model = keras.Sequential(
            [keras.Input((3,)), layers.Dense(2), PerStepBatchNormalization(2, **kwargs), layers.Dense(2)]
        )
        return keras_maml.MetaModel(model, algorithm)

    # Queries are seen with the last row, supports, whose steps Reptile follows, with all others.
    for algorithm in (keras_maml.Reptile(0.1, 2), keras_maml.IMAML(0.1, 2)):
        with pytest.raises(ValueError, match="do not adapt, as those .* with `weights_per_step=False`"):
            made(algorithm)
        made(algorithm, weights_per_step=False)
    with pytest.raises(ValueError, match="and with `steps=0` there are none. Use `keras_maml.layers.BatchNorm"):
        made(keras_maml.ProtoNet())


def test_configuration_round_trips():
    layer = PerStepBatchNormalization(3, "moving", False, momentum=0.9, name="norm")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config() and again.weights_per_step is False


def test_weights_of_steps_do_not_adapt():
    # Row k is read after k steps and not again: nothing would see it moved.
    model = per_step_normalization(classifier(), steps=2)
    layer = model.layers[2]
    mask = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 2)).mask
    still = [v.path for v, adapts in zip(model.trainable_variables, mask, strict=True) if not adapts]
    assert still == [layer.gamma.path, layer.beta.path]
    chosen = keras_maml.Algorithm(
        keras_maml.learning_rules.SGD(0.1), keras_maml.meta_gradients.Unrolled(), 2, layers=layer.name
    )
    with pytest.raises(ValueError, match="No weight of model .* adapts"):
        keras_maml.MetaModel(model, chosen)
    with pytest.raises(ValueError, match="`weights_per_step=False`"):
        keras_maml.MetaModel(model, keras_maml.Reptile(0.1, 2))
    of_moments = per_step_normalization(classifier(), steps=2, weights_per_step=False)
    assert all(keras_maml.MetaModel(of_moments, keras_maml.Reptile(0.1, 2)).mask)
