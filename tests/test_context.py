"""Context parameters: CAVIA in closed form, in NumPy, and by finite differences; roles of weights that adapt."""


import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import CAVIA, Algorithm, ZeroContext
from keras_maml.checking.finite_differences import compare
from keras_maml.layers import ContextParameters
from keras_maml.learning_rules import SGD
from keras_maml.meta_gradients import ParameterDifference, Unrolled

MODES = ("concatenate", "modulate")


def network(mode="concatenate", size=3):
    keras.utils.set_random_seed(0)
    middle = layers.Dense(4, "tanh"), ContextParameters(size, mode), layers.Dense(5, "tanh")
    return keras.Sequential([keras.Input((2,)), *middle, layers.Dense(1)])


def made(model, algorithm=None, task_mapping="parallel"):
    meta_model = keras_maml.MetaModel(model, algorithm or CAVIA(0.5, 2), task_mapping)
    meta_model.compile("adam", "mse")
    return meta_model


def batch(seed=0, dtype="float32", tasks=2):
    random = np.random.default_rng(seed)
    x = {name: random.normal(size=(tasks, 5, 2)).astype(dtype) for name in ("support_x", "query_x")}
    x["support_y"], y = random.normal(size=(2, tasks, 5, 1)).astype(dtype)
    return x, y


class TestLayer:
    # Context (2, -1); W maps it to scale (2 - 3, 4 - 0) = (-1, 4) and shift (0 - 1, 2 - 5) = (-1, -3).
    def test_modulates_by_hand(self):
        layer = ContextParameters(2, "modulate")
        layer.build((None, 2))
        layer.context.assign([2.0, -1.0])
        layer.kernel.assign([[1.0, 2.0, 0.0, 1.0], [3.0, 0.0, 1.0, 5.0]])
        np.testing.assert_allclose(layer(np.array([[1.0, 1.0], [2.0, -1.0]])), [[-1, 2], [-1, -8]])
        layer.bias.assign([1.0, 0.0, 0.0, 10.0])  # scale (0, 4), shift (-1, 7)
        np.testing.assert_allclose(layer(np.array([[1.0, 1.0]])), [[0, 12]])

    def test_concatenates_in_all_ranks(self):
        layer = ContextParameters(2)
        layer.build((None, 1))
        layer.context.assign([5.0, 6.0])
        np.testing.assert_array_equal(layer(np.array([[1.0], [2.0]])), [[1, 5, 6], [2, 5, 6]])
        images = ContextParameters(2)(np.ones((3, 4, 5, 1)))
        assert images.shape == (3, 4, 5, 3)
        assert ContextParameters(2)(keras.Input((None, 4))).shape == (None, None, 6)
        assert ContextParameters(2, "modulate")(keras.Input((None, 4))).shape == (None, None, 4)

    @pytest.mark.parametrize("mode", MODES)
    def test_half_precision(self, mode):
        layer = ContextParameters(2, mode, dtype="mixed_float16")
        assert layer(np.ones((3, 4), "float32")).dtype == tf.float16 and layer.context.dtype == "float32"

    @pytest.mark.parametrize("arguments, message", [
        ((0,), "`size` must be an integer of at least 1. Received: size=0"),
        ((True,), "`size` must be an integer"),
        ((2, "film"), r"`mode` must be one of \('concatenate', 'modulate'\). Received: mode='film'"),
    ])
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ContextParameters(*arguments)

    def test_channels_must_be_known(self):
        with pytest.raises(ValueError, match=r"known number of channels. Received inputs of shape \(None, None\)"):
            ContextParameters(2)(keras.Input((None,)))


class TestClosedForm:
    """Prediction w c with inputs that are 0 but for the context: c starts at 0; support y = 1, query y = -1, squares.

    One step of rate a: dL/dc = 2 w (w c - 1) = -2 w, so c = 2 a w, and w stays. Query: p = 2 a w^2, loss (p + 1)^2,
    meta-gradient 2 (p + 1) 4 a w. A second step: c' = c - 2 a w (w c - 1).
    """

    w, rate = 0.7, 0.25

    def made(self, steps, **kwargs):
        model = keras.Sequential([keras.Input((1,)), ContextParameters(1), layers.Dense(1, use_bias=False)])
        model.layers[0].context.assign([17.0])  # which plays no part
        model.layers[1].kernel.assign([[3.0], [self.w]])  # the first for inputs, which are 0
        return made(model, CAVIA(self.rate, steps, **kwargs))

    x = {"support_x": np.zeros((1, 1, 1)), "support_y": np.ones((1, 1, 1)), "query_x": np.zeros((1, 1, 1))}
    y = -np.ones((1, 1, 1))

    def test_one_step(self):
        meta_model = self.made(1)
        loss, predictions, gradients = meta_model.meta_gradients(self.x, self.y)
        p = 2 * self.rate * self.w**2
        np.testing.assert_allclose(predictions, [[[p]]], rtol=1e-6)
        np.testing.assert_allclose(loss, (p + 1) ** 2, rtol=1e-6)
        assert [v.name for v in meta_model.trainable_variables] == ["kernel"]
        np.testing.assert_allclose(gradients[0], [[0], [2 * (p + 1) * 4 * self.rate * self.w]], rtol=1e-6)

    def test_clipping_and_steps_of_evaluation(self):
        # The first gradient is -1.4: clipped to 0.5, c = 0.125; dL/dc = 1.4 (0.0875 - 1) = -1.2775, clipped again.
        predictions = self.made(1, evaluation_steps=2, clipnorm=0.5).predict(self.x, verbose=0)
        np.testing.assert_allclose(predictions, [[[0.7 * 0.25]]], rtol=1e-6)

    def test_adapted_models_and_files_hold_the_context(self, tmp_path):
        meta_model = self.made(2)
        first = 2 * self.rate * self.w
        context = first - 2 * self.rate * self.w * (self.w * first - 1)
        learner = meta_model.adapt(self.x["support_x"][0], self.x["support_y"][0])
        np.testing.assert_allclose(learner.layers[0].context, [context], rtol=1e-6)
        np.testing.assert_allclose(learner(np.zeros((1, 1))), [[self.w * context]], rtol=1e-6)
        meta_model.export(tmp_path / "served")
        served = tf.saved_model.load(tmp_path / "served").signatures
        support = {name: tf.constant(self.x[name][0], tf.float32) for name in ("support_x", "support_y")}
        adapted = served["adapt"](**support)
        (name,) = [name for name in adapted if name.endswith("context")]
        np.testing.assert_allclose(adapted[name], [context], rtol=1e-6)
        query = tf.zeros((1, 1))
        for given in (served["serving_default"](query_x=query, **support), served["predict"](query_x=query, **adapted)):
            np.testing.assert_allclose(*given.values(), [[self.w * context]], rtol=1e-6)
        meta_model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded.predict(self.x, verbose=0), [[[self.w * context]]], rtol=1e-6)
        assert loaded.algorithm.get_config() == meta_model.algorithm.get_config()


def by_numpy(values, x, y, steps, rate):
    """Mean query loss and predictions of CAVIA with FiLM, two layers and context gradients written out."""
    first, first_bias, film, film_bias, kernel, bias = values
    channels = first.shape[1]
    losses, predictions = [], []
    for t in range(len(y)):
        context = np.zeros(film.shape[0])

        def forward(context, inputs):
            hidden = np.tanh(inputs @ first + first_bias)
            factors = context @ film + film_bias
            return hidden, (hidden * (1 + factors[:channels]) + factors[channels:]) @ kernel + bias

        for _ in range(steps):
            hidden, outputs = forward(context, x["support_x"][t])
            errors = 2 * (outputs - x["support_y"][t]) / len(outputs)  # (S, 1)
            of_modulated = errors @ kernel.T  # (S, channels)
            of_factors = np.concatenate([(of_modulated * hidden).sum(0), of_modulated.sum(0)])
            context = context - rate * film @ of_factors
        predictions.append(forward(context, x["query_x"][t])[1])
        losses.append(((predictions[-1] - y[t]) ** 2).mean())
    return np.mean(losses), np.array(predictions)


@pytest.mark.usefixtures("float64")
def test_modulation_by_numpy():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, "tanh"), ContextParameters(3, "modulate"), layers.Dense(1)]
    )
    meta_model = made(model, CAVIA(0.5, 3))
    generator = np.random.default_rng(1)
    for variable in meta_model.trainable_variables:
        variable.assign_add(0.3 * generator.normal(size=variable.shape))
    values = [v.numpy() for v in meta_model.trainable_variables]
    x, y = batch(dtype="float64")
    loss, predictions, gradients = meta_model.meta_gradients(x, y)
    expected_loss, expected = by_numpy(values, x, y, 3, 0.5)
    np.testing.assert_allclose(predictions, expected, rtol=1e-10)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
    for value, gradient in zip(values, gradients, strict=True):
        direction = generator.normal(size=value.shape)
        kept, moved = value.copy(), []
        for sign in (1, -1):
            value[...] = kept + sign * 1e-6 * direction
            moved.append(by_numpy(values, x, y, 3, 0.5)[0])
        value[...] = kept
        np.testing.assert_allclose(np.vdot(gradient, direction), (moved[0] - moved[1]) / 2e-6, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode, steps", [("concatenate", 2), ("modulate", 2), ("modulate", 11)])  # the last in a loop
def test_finite_differences(mode, steps):
    found = compare(made(network(mode), CAVIA(0.5, steps)), *tf.nest.map_structure(tf.constant, batch()), None)
    assert found.precision == "float64", found.reason
    assert found.difference < 1e-6


def test_the_same_in_all_mappings():
    # A batch of which the first task lacks a support and the second has another one, both of weight 0 and far away.
    x, y = batch()
    x["support_weight"] = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]], "float32")
    x["support_x"][1, 4] = 1e6
    results = []
    for mapping in ("parallel", "vectorized"):
        step = tf.function(made(network("modulate"), task_mapping=mapping).meta_gradients, autograph=False)
        results.append(step(*tf.nest.map_structure(tf.constant, (x, y)))[2])
    # And as if the second task had never had it.
    x["support_x"][1, 4] = 0
    results.append(made(network("modulate")).meta_gradients(*tf.nest.map_structure(tf.constant, (x, y)))[2])
    for other in results[1:]:
        for one, gradient in zip(results[0], other, strict=True):
            np.testing.assert_allclose(gradient, one, rtol=1e-4, atol=1e-6)


def test_what_adapts_and_what_lies_below_runs_once():
    meta_model = made(network("modulate"))
    adapting = [v for v, a in zip(meta_model.model.trainable_variables, meta_model.mask, strict=True) if a]
    assert [v is meta_model.model.layers[1].context for v in adapting] == [True]
    assert meta_model._halves is not None


def test_it_learns_lines_through_zero():
    # y = slope x, a slope a task: one number of context can hold it.
    generator = np.random.default_rng(0)

    def lines(tasks=20):
        slopes, x = generator.uniform(-2, 2, (tasks, 1, 1)), generator.uniform(-1, 1, (tasks, 10, 1))
        y = slopes * x
        parts = {"support_x": x[:, :5], "support_y": y[:, :5], "query_x": x[:, 5:]}
        return {name: part.astype("float32") for name, part in parts.items()}, y[:, 5:].astype("float32")

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), ContextParameters(1, "modulate"), layers.Dense(1)])
    meta_model = keras_maml.MetaModel(model, CAVIA(0.5, 2), "vectorized")
    meta_model.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=False)
    test = lines(100)
    start = meta_model.evaluate(*test, verbose=0)
    for _ in range(100):
        meta_model.train_on_batch(*lines())
    assert meta_model.evaluate(*test, verbose=0) < start / 10


class TestRefused:
    def test_models_without_context(self):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
        with pytest.raises(ValueError, match=r"no trainable weights for `keras_maml.context_parameters`. Put `keras_m"):
            made(model)
        with pytest.raises(ValueError, match=r"no trainable weights for `keras_maml.context_parameters`"):
            made(model, Algorithm(SGD(), Unrolled(), 1, start=ZeroContext()))

    def test_context_that_does_not_adapt(self):
        with pytest.raises(ValueError, match="`ZeroContext` sets .* to the same values in every task"):
            made(network(), Algorithm(SGD(), Unrolled(), 1, layers=keras_maml.biases, start=ZeroContext()))

    def test_reptile(self):
        with pytest.raises(ValueError, match=r"needs `layers=None`.*keras_maml.context_parameters"):
            Algorithm(SGD(), ParameterDifference(), 1, layers=keras_maml.context_parameters, start=ZeroContext())
