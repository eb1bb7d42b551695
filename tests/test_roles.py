"""What adapts by the part that it plays: exactly those weights, and what lies below runs once."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import Algorithm
from keras_maml.learning_rules import SGD
from keras_maml.meta_gradients import Unrolled
from keras_maml.roles import Role
from keras_maml.selection import adapting_mask, exclude


def adapting(model, chosen):
    mask = adapting_mask(model, chosen)
    return [v for v, adapts in zip(model.trainable_variables, mask, strict=True) if adapts]


def same(found, expected):
    return [id(v) for v in found] == [id(v) for v in expected]


def mixed():
    """Layers of many kinds, one in a nested model."""
    inputs = keras.Input((4, 6))
    attention = layers.MultiHeadAttention(1, 2, name="bias_kernel")  # a name that says nothing
    x = attention(inputs, inputs)
    x = keras.Sequential([layers.LayerNormalization(), layers.Dense(6, use_bias=False)])(x)
    x = layers.BatchNormalization(scale=False)(layers.GRU(3)(x))
    return keras.Model(inputs, layers.Dense(2)(layers.RMSNormalization()(x)))


class TestChoices:
    def test_biases(self):
        model = mixed()
        _, attention, inner, recurrent, batch, _, head = model.layers
        parts = attention.query_dense, attention.key_dense, attention.value_dense, attention.output_dense
        expected = [*(layer.bias for layer in parts), inner.layers[0].beta, recurrent.cell.bias, batch.beta, head.bias]
        found = adapting(model, keras_maml.biases)
        assert {id(v) for v in found} == {id(v) for v in expected} and len(found) == len(expected)

    def test_normalization(self):
        model = mixed()
        _, _, inner, _, batch, rms, _ = model.layers
        expected = [inner.layers[0].gamma, inner.layers[0].beta, batch.beta, rms.scale]
        assert same(adapting(model, keras_maml.normalization), expected)

    def test_lora(self):
        model = mixed()
        head, query = model.layers[-1], model.layers[1].query_dense
        for layer in (head, query):
            layer.enable_lora(2)
        found = adapting(model, keras_maml.lora)
        expected = [query.lora_kernel_a, query.lora_kernel_b, head.lora_kernel_a, head.lora_kernel_b]
        assert {id(v) for v in found} == {id(v) for v in expected} and len(found) == 4

    def test_frozen_weights_are_left_out(self):
        model = mixed()
        model.layers[2].trainable = False
        _, _, _, _, batch, rms, _ = model.layers
        assert same(adapting(model, keras_maml.normalization), [batch.beta, rms.scale])

    def test_together_with_layers_and_left_out(self):
        model = mixed()
        batch, rms, head = model.layers[-3:]
        some = (keras_maml.normalization, head)
        assert same(adapting(model, some)[-3:], [rms.scale, head.kernel, head.bias])
        left = adapting(model, exclude(keras_maml.biases, keras_maml.normalization))
        assert all(v.name != "bias" and len(v.shape) > 1 for v in left) and head.kernel is left[-1]

    @pytest.mark.parametrize("role, remedy", [
        (keras_maml.lora, r"Call `layer.enable_lora\(rank\)`"),
        (keras_maml.normalization, "Put `keras.layers.LayerNormalization`"),
        (keras_maml.biases, "Make its layers with `use_bias=True`"),
        (keras_maml.context_parameters, "Put `keras_maml.layers.ContextParameters"),
    ])
    def test_models_without_any(self, role, remedy):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
        with pytest.raises(ValueError, match=f"no trainable weights for `keras_maml.{role.name}`. {remedy}"):
            adapting_mask(model, role)

    def test_unknown(self):
        with pytest.raises(ValueError, match=r"`name` must be one of \['biases'.*Received: name='bias'"):
            Role("bias")

    def test_configuration(self, tmp_path):
        for chosen in (keras_maml.biases, (keras_maml.lora, "head"), exclude(keras_maml.normalization)):
            algorithm = Algorithm(SGD(), Unrolled(), 1, layers=chosen)
            again = Algorithm.from_config(json.loads(json.dumps(algorithm.get_config())))
            assert again.layers == algorithm.layers
        assert repr(keras_maml.biases) == "keras_maml.biases"


def tensors(x):
    return tf.nest.map_structure(tf.constant, x)


def episodes():
    generator = np.random.default_rng(0)
    x = {name: generator.normal(size=(2, 5, 1 if name[-1] == "y" else 3)).astype("float32") for name in
         ("support_x", "support_y", "query_x")}
    return x, generator.normal(size=(2, 5, 1)).astype("float32")


def trunk_and(*above):
    """A trunk that is frozen, and what learns above it."""
    keras.utils.set_random_seed(0)
    trunk = keras.Sequential([keras.Input((3,)), layers.Dense(16, "tanh"), layers.Dense(8, "tanh")], name="trunk")
    trunk.trainable = False
    inputs = keras.Input((3,))
    x = trunk(inputs)
    for layer in above:
        x = layer(x)
    return keras.Model(inputs, x)


class TestFrozenTrunks:
    def test_only_an_adapter_moves_and_the_trunk_runs_once(self):
        # Two layers, once for supports and once for queries, whatever the number of steps. Operations bear the name of
        # the layer that they are in.
        def products(steps):
            model = trunk_and(layers.Dense(4, "tanh"), layers.Dense(1))
            meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, steps), "parallel")
            meta_model.compile("sgd", "mse")
            step = tf.function(meta_model.meta_gradients, autograph=False).get_concrete_function(*tensors(episodes()))
            library = step.graph.as_graph_def().library.function
            return sum(n.op == "MatMul" and "trunk" in n.name for function in library for n in function.node_def)

        assert products(1) == products(3) == 4

    def test_gives_what_a_whole_model_gives(self):
        x, y = episodes()
        model = trunk_and(layers.Dense(4, "tanh"), layers.Dense(1))
        cut, whole = (keras_maml.MetaModel(model, keras_maml.MAML(0.1, 2), "parallel") for _ in range(2))
        assert cut._halves is not None
        whole._halves = None
        results = []
        for meta_model in (cut, whole):
            meta_model.compile("sgd", "mse")
            results.append(meta_model.meta_gradients(x, y))
        for one, other in zip(*(tf.nest.flatten(result) for result in results), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)

    def test_lora_of_a_large_model_is_adapted_exported_and_saved(self, tmp_path):
        # Both layers of the trunk and the head have kernels that do not adapt; of LoRA, B is 0 at first.
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)])
        for layer in model.layers:
            layer.enable_lora(2)
            layer.bias.trainable = False
        meta_model = keras_maml.MetaModel(model, Algorithm(SGD(0.1), Unrolled(), 2, layers=keras_maml.lora))
        assert all(meta_model.mask) and len(meta_model.mask) == 4
        meta_model.compile("sgd", "mse")
        x, y = episodes()
        before = [v.numpy() for v in model.variables]
        expected = meta_model(x).numpy()
        learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
        np.testing.assert_allclose(learner(x["query_x"][0]), expected[0], rtol=1e-4, atol=1e-6)
        moved = [not np.array_equal(v, old) for v, old in zip(learner.variables, before, strict=True)]
        lora = {id(v) for v in adapting(model, keras_maml.lora)}
        assert moved == [id(v) in lora for v in model.variables]
        meta_model.fit(x, y, batch_size=2, verbose=0)
        expected = meta_model.predict(x, verbose=0)
        start = meta_model.adapt(x["support_x"][0], x["support_y"][0], steps=0)
        assert np.abs(start(x["query_x"][0]) - expected[0]).max() > 0.01
        meta_model.export(str(tmp_path / "export"))
        task = {name: value[0] for name, value in x.items()}
        served = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"](**tensors(task))
        np.testing.assert_allclose(served["predictions"], expected[0], rtol=1e-4, atol=1e-6)
        # Keras's files hold the sum of a kernel and A B alone, from which nothing would adapt.
        meta_model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-6)
        values = [v.numpy() for v in meta_model.variables]
        meta_model.save_weights(tmp_path / "model.weights.h5")
        meta_model.load_weights(tmp_path / "model.weights.h5")
        for variable, value in zip(meta_model.variables, values, strict=True):
            np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6)


class TestTNet:
    """Prediction w t x: w adapts, t does not. Support x = 1, y = 1; query x = 1, y = -2; squares / 2.

    One step: w' = w - a t (w t - 1), so p = w' t = w t - a t^2 (w t - 1): the metric t^2 scales the step.
    Loss (p + 2)^2 / 2; dp/dw = t - a t^3, dp/dt = w - 2 a t (w t - 1) - a t^2 w.
    """

    w, t, a = 0.7, 1.5, 0.2

    def test_closed_form(self):
        model = keras.Sequential(
            [keras.Input((1,)), layers.Dense(1, use_bias=False), layers.Dense(1, use_bias=False, name="warp")]
        )
        model.set_weights([np.array([[self.w]]), np.array([[self.t]])])
        algorithm = Algorithm(SGD(self.a), Unrolled(), 1, layers=exclude("warp"))
        meta_model = keras_maml.MetaModel(model, algorithm)
        meta_model.compile("sgd", lambda y, predictions: tf.square(y[:, 0] - predictions[:, 0]) / 2)
        x = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
        _, predictions, gradients = meta_model.meta_gradients(x, -2 * np.ones((1, 1, 1)))
        w, t, a = self.w, self.t, self.a
        p = w * t - a * t**2 * (w * t - 1)
        np.testing.assert_allclose(predictions, [[[p]]], rtol=1e-6)
        expected = [(p + 2) * (t - a * t**3), (p + 2) * (w - 2 * a * t * (w * t - 1) - a * t**2 * w)]
        np.testing.assert_allclose([g[0, 0] for g in gradients], expected, rtol=1e-5)
        learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
        np.testing.assert_allclose(learner.layers[1].kernel, [[t]])
        np.testing.assert_allclose(learner.layers[0].kernel, [[p / t]], rtol=1e-6)
