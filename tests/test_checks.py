"""Layers without right second derivatives in TensorFlow are named, once, and only where they matter."""

import warnings

import keras
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import checks

EPISODE = {name: tf.ones((1, 2, 4, 4, 1)) for name in ("support_x", "query_x")} | {"support_y": tf.zeros((1, 2, 1))}


def image_model(*middle):
    return keras.Sequential([keras.Input((4, 4, 1)), *middle, layers.Flatten(), layers.Dense(1)])


def messages(model, algorithm):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keras_maml.MetaModel(model, algorithm)
    return [str(w.message) for w in caught]


def test_bilinear_resizing_is_named():
    convolution = layers.Conv2D(1, 3)
    model = image_model(convolution, layers.UpSampling2D(interpolation="bilinear", name="enlarge"))
    (message,) = messages(model, keras_maml.MAML())
    assert "['enlarge'] lack a term" in message
    assert messages(model, keras_maml.FOMAML()) == []
    assert messages(model, keras_maml.Reptile()) == []


def test_nearest_resizing_is_not():
    assert messages(image_model(layers.UpSampling2D()), keras_maml.MAML()) == []


def test_recurrent_layers_leave_cudnn_where_there_is_a_gpu(monkeypatch):
    model = keras.Sequential([keras.Input((3, 1)), layers.LSTM(2, name="memory"), layers.Dense(1)])
    assert messages(model, keras_maml.MAML()) == []
    assert model.get_layer("memory").use_cudnn == "auto"
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["one"])
    assert messages(model, keras_maml.FOMAML()) == []
    (message,) = messages(model, keras_maml.MAML())
    assert "['memory'] now run without it" in message
    assert model.get_layer("memory").use_cudnn is False
    assert messages(model, keras_maml.MAML()) == []


def test_an_operation_without_a_second_derivative_is_an_error_with_a_remedy():
    model = image_model(layers.Conv2D(1, 3, activation="softsign"))
    for algorithm in (keras_maml.MAML(steps=1), keras_maml.IMAML(steps=1)):
        meta_model = keras_maml.MetaModel(model, algorithm)
        meta_model.compile(loss="mse")
        with pytest.raises(ValueError, match="no second derivative in TensorFlow.*Softsign.*FOMAML"):
            meta_model.meta_gradients(EPISODE, tf.ones((1, 2, 1)))
    meta_model = keras_maml.MetaModel(model, keras_maml.FOMAML(steps=1))
    meta_model.compile(loss="mse")
    _, _, gradients = meta_model.meta_gradients(EPISODE, tf.ones((1, 2, 1)))
    assert all(bool(tf.reduce_all(tf.math.is_finite(g))) for g in gradients)


@pytest.mark.parametrize("arguments", [{"strides": 1}, {"padding": "same"}, {"dtype": "mixed_float16"}])
def test_max_pooling_stays_out_of_xla(arguments):
    model = image_model(layers.MaxPooling2D(name="pool", **arguments))
    for algorithm, warned in ((keras_maml.MAML(), True), (keras_maml.FOMAML(), False)):
        meta_model = keras_maml.MetaModel(model, algorithm)
        meta_model.compile(loss="mse")
        assert meta_model.jit_compile is False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            meta_model.compile(loss="mse", jit_compile=True)
        assert ["layer 'pool' to bfloat16" in str(w.message) for w in caught] == [True] * warned
        assert meta_model.jit_compile is True
    assert checks.jit_compile(model, "auto", second_order=True) is False
    assert checks.jit_compile(model, "auto", second_order=False) == "auto"
    assert checks.jit_compile(image_model(layers.Conv2D(1, 3)), "auto", second_order=True) == "auto"


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_max_pooling_of_windows_apart_may_be_compiled(data_format):
    # `tests/test_second_derivatives.py` shows that it is exact.
    model = image_model(layers.MaxPooling2D((2, 1), data_format=data_format))
    assert checks.jit_compile(model, "auto", second_order=True) == "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_maml.MetaModel(model).compile(loss="mse", jit_compile=True)


@pytest.mark.parametrize("kind", [layers.Conv2D, layers.SeparableConv2D, layers.Conv2DTranspose])
def test_convolutions_under_xla_are_slow_on_cpus(kind, monkeypatch):
    meta_model = keras_maml.MetaModel(image_model(kind(1, 3, name="convolution")), keras_maml.FOMAML())
    with pytest.warns(UserWarning, match="On CPUs, XLA's convolutions take more than twice.*layer 'convolution'"):
        meta_model.compile(loss="mse", jit_compile=True)
    assert meta_model.jit_compile is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meta_model.compile(loss="mse")
        meta_model.compile(loss="mse", jit_compile=False)
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [kind])
        assert checks.jit_compile(meta_model.model, True, second_order=True) is True


@keras.saving.register_keras_serializable("test_checks")
class Noisy(layers.Layer):
    """Draws from Keras's global seed generator: the same numbers in every step and task."""

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))


def test_layers_on_the_global_seed_generator_are_named():
    meta_model = keras_maml.MetaModel(image_model(Noisy()), keras_maml.MAML(steps=1))
    meta_model.compile(loss="mse")
    with pytest.warns(UserWarning, match="global seed generator"):
        meta_model.meta_gradients(EPISODE, tf.ones((1, 2, 1)))
