import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml.checking.finite_differences import COARSE_BOUND, cast, compare


def batch(seed=0):
    random = np.random.default_rng(seed)
    x = {name: tf.constant(random.normal(size=(1, 6, 4)), tf.float32) for name in ("support_x", "query_x")}
    y = [tf.constant(random.normal(size=(1, 6, 2)), tf.float32) for _ in range(2)]
    return {**x, "support_y": y[0]}, y[1], None


def made(*middle, algorithm=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), *middle, layers.Dense(2)])
    meta_model = keras_maml.MetaModel(model, algorithm or keras_maml.MAML(0.1, 2))
    meta_model.compile("adam", "mse")
    return meta_model


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    """Twice its input, with a derivative that is wrong by a factor."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x + tf.stop_gradient((2.0 - self.factor) * x)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("tests")
class Single(layers.Layer):
    """Refuses float64."""

    def call(self, x):
        if x.dtype == "float64":
            raise TypeError("not made for float64")
        return tf.tanh(x)


@keras.saving.register_keras_serializable("tests")
class Outer(layers.Layer):
    """Makes a layer of its own, which takes the global precision."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(3, "tanh")

    def call(self, x):
        return self.inner(x)


class TestCompare:
    @pytest.mark.parametrize(
        "middle, algorithm",
        [
            ((), None),
            ((layers.Dropout(0.4),), None),
            ((layers.BatchNormalization(),), None),
            ((keras_maml.layers.BatchNormalization("support"),), None),
            ((Scaled(2.0),), None),
            ((), keras_maml.MetaSGD(0.1, 2)),
            ((), keras_maml.ANIL(0.1, 3)),
        ],
    )
    def test_agrees_where_the_gradient_is_right(self, middle, algorithm):
        found = compare(made(*middle, algorithm=algorithm), *batch())
        assert found.precision == "float64", found.reason
        assert found.difference < 1e-6

    @pytest.mark.parametrize("factor", [1.99, 1.0])
    def test_sees_a_derivative_that_is_wrong(self, factor):
        found = compare(made(Scaled(factor)), *batch())
        # The derivative of the queries' loss alone is off by the factor: 0.5 % and a half.
        assert found.difference > 0.3 * (2 - factor) / 2
        assert found.difference > found.bound

    def test_in_float32_where_a_layer_cannot_be_cast(self):
        right, wrong = made(Single()), made(Single(), Scaled(1.0))
        found = compare(right, *batch())
        assert (found.precision, found.bound) == ("float32", COARSE_BOUND)
        assert found.reason and found.difference < 0.05
        assert compare(wrong, *batch()).difference > found.bound

    def test_changes_nothing(self):
        meta_model = made(layers.Dropout(0.4), Single())
        meta_model.meta_gradients(*batch())
        before = [v.numpy() for v in meta_model.variables]
        compare(meta_model, *batch())
        for value, variable in zip(before, meta_model.variables, strict=True):
            np.testing.assert_array_equal(value, variable, err_msg=variable.path)


    def test_layers_inside_of_layers_are_cast(self):
        found = compare(made(Outer()), *batch())
        assert found.precision == "float64", found.reason
        assert found.difference < 1e-6

    def test_half_precision_is_not_compared(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            meta_model = made(Single())
        finally:
            keras.config.set_dtype_policy("float32")
        found = compare(meta_model, *batch())
        assert found.difference is None and "half precision" in found.reason


class TestCast:
    def test_holds_the_same_values_in_float64(self):
        meta_model = made(layers.BatchNormalization(), algorithm=keras_maml.MetaSGD(0.1, 1))
        for position, variable in enumerate(meta_model.trainable_variables):
            variable.assign(np.random.default_rng(position).normal(size=variable.shape))
        copy = cast(meta_model)
        assert [v.dtype for v in copy.trainable_variables] == ["float64"] * len(meta_model.trainable_variables)
        for one, other in zip(meta_model.trainable_variables, copy.trainable_variables, strict=True):
            np.testing.assert_array_equal(one, other)
        loss, _, gradients = meta_model.meta_gradients(*batch())
        exact_loss, _, exact = copy.meta_gradients(*batch())
        np.testing.assert_allclose(loss, exact_loss, rtol=1e-5)
        for one, other in zip(gradients, exact, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)

    def test_a_mixed_policy_is_cast_too(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            meta_model = made()
        finally:
            keras.config.set_dtype_policy("float32")
        assert {layer.compute_dtype for layer in cast(meta_model).model.layers} == {"float64"}
        assert compare(meta_model, *batch()).difference < 1e-6
