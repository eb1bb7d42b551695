"""Metrics before adaptation, in numbers worked out by hand."""

import keras
import numpy as np
import tensorflow as tf

import keras_maml
from keras_maml import metrics


def test_before_adaptation():
    # One weight w = 3, supports and queries x = 1. Support target 1, loss (w - 1)^2 with gradient 4: one step of 0.25
    # leads to 2. Query target -2: before adaptation the loss is 25 and the absolute error 5, after it 16 and 4.
    ones = np.ones((2, 1, 1), "float32")
    x, y = {"support_x": ones, "support_y": ones, "query_x": ones}, -2 * ones
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.25, 1), "parallel", log_before=True)
    meta_model.compile(keras.optimizers.SGD(1e-12), "mse", metrics=[keras.metrics.MeanAbsoluteError(name="error")])
    expected = {"loss": 16.0, "error": 4.0, "loss_before": 25.0, "error_before": 5.0}
    history = meta_model.fit(x, y, batch_size=1, epochs=2, validation_data=(x, y), verbose=0).history
    assert history.keys() == {*expected, *(f"val_{name}" for name in expected)}
    evaluated = meta_model.evaluate(x, y, return_dict=True, verbose=0)
    for name, value in expected.items():
        np.testing.assert_allclose([*history[name], *history[f"val_{name}"], evaluated[name]], 5 * [value], rtol=1e-6)


def test_before_adaptation_is_reset():
    before = metrics.BeforeAdaptation()
    assert before.result() == {}
    before.compile(metrics=["mae"])
    y, predictions = tf.zeros((2, 1)), tf.constant([[1.0], [3.0]])
    for _ in range(2):
        before.update(tf.constant([4.0, 6.0]), y, predictions)
        assert {k: float(v) for k, v in before.result().items()} == {"loss_before": 5.0, "mae_before": 2.0}
        before.reset()
        before.update(tf.constant([1.0]), y, y)
        assert {float(v) for v in before.result().values()} == {1.0, 0.0}
        before.reset()
