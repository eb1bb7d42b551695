"""Every algorithm against a closed form on a parabola that can be worked out by hand.

One weight w = 3, prediction w * x with x = 1, loss (prediction - target)^2 / 2, so that the gradient is w - target. The
support target is 1, the query target -2. One inner step of 0.1 maps w - 1 to 0.9 (w - 1); four steps to 0.6561 (w - 1):
phi = 1 + 0.6561 * 2 = 2.3122, with query gradient phi + 2 = 4.3122.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml

X = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
Y = np.full((1, 1, 1), -2.0, "float32")


def half_square(y, predictions):
    return tf.square(y[:, 0] - predictions[:, 0]) / 2


def parabola(algorithm, task_mapping="parallel"):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    meta_model = keras_maml.MetaModel(model, algorithm, task_mapping)
    meta_model.compile(optimizer=keras.optimizers.SGD(1.0), loss=half_square)
    return meta_model


CASES = {
    # d/dw of (phi + 2)^2 / 2 = (phi + 2) dphi/dw = 4.3122 * 0.9^4
    "MAML": (keras_maml.MAML(0.1, 4), [2.829234]),
    # inner gradients are constants: dphi/dw = 1
    "FOMAML": (keras_maml.FOMAML(0.1, 4), [4.312200]),
    # w - phi = 3 - 2.3122
    "Reptile": (keras_maml.Reptile(0.1, 4), [0.687800]),
    # as MAML; by the step size a: (phi + 2) d/da [1 + 2 (1 - a)^4] = 4.3122 * -8 * 0.9^3
    "MetaSGD": (keras_maml.MetaSGD(0.1, 4), [2.829234, -25.148750]),
    # The minimum of (w - 1)^2 / 2 + 2 (w - 3)^2 / 2 is 7/3, one step of 1/3 from 3: 3 - (2 + 0) / 3. The query gradient
    # there, 7/3 + 2 = 13/3, through (1 + 1/2)^-1: 26/9.
    "IMAML": (keras_maml.IMAML(1 / 3, 1, strength=2.0), [2.888889]),
}


@pytest.mark.parametrize("task_mapping", ["parallel", "vectorized"])
@pytest.mark.parametrize("name", CASES)
def test_meta_gradient(name, task_mapping):
    algorithm, expected = CASES[name]
    meta_model = parabola(algorithm, task_mapping)
    for function in (meta_model.meta_gradients, tf.function(meta_model.meta_gradients)):
        _, _, gradients = function(X, Y)
        np.testing.assert_allclose([float(g[0, 0]) for g in gradients], expected, rtol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_outer_step_of_fit(name):
    # plain gradient descent with rate 1: w <- 3 - gradient
    algorithm, expected = CASES[name]
    meta_model = parabola(algorithm)
    meta_model.fit(X, Y, batch_size=1, verbose=0)
    np.testing.assert_allclose(meta_model.model.get_weights()[0][0, 0], 3 - expected[0], rtol=1e-5)


def test_loss_and_predictions_are_those_after_adaptation():
    # phi = 2.3122; (2.3122 + 2)^2 / 2 = 9.297534
    meta_model = parabola(keras_maml.MAML(0.1, 4))
    loss, predictions, _ = meta_model.meta_gradients(X, Y)
    np.testing.assert_allclose([loss, predictions[0, 0, 0]], [9.297534, 2.3122], rtol=2e-6)


def test_learned_step_size_is_learned_to_first_order_too():
    # Under FirstOrder the inner gradients are the constants 2, 1.8, 1.62, 1.458: phi = w - a * 6.878, so that
    # d/da = 4.3122 * -6.878 and d/dw = 4.3122.
    algorithm = keras_maml.Algorithm(
        keras_maml.learning_rules.LearnedSGD(0.1), keras_maml.meta_gradients.FirstOrder(), 4
    )
    _, _, gradients = parabola(algorithm).meta_gradients(X, Y)
    np.testing.assert_allclose([float(g[0, 0]) for g in gradients], [4.3122, 4.3122 * -6.878], rtol=2e-6)


def test_layerwise_rates_are_per_step():
    # phi = 1 + 2 (1 - a0)(1 - a1); by a0: (phi + 2) * -2 (1 - a1) with both 0.1: phi = 2.62, 4.62 * -1.8 = -8.316.
    algorithm = keras_maml.Algorithm(
        keras_maml.learning_rules.LayerwiseSGD(0.1), keras_maml.meta_gradients.Unrolled(), 2, evaluation_steps=3
    )
    meta_model = parabola(algorithm)
    _, _, gradients = meta_model.meta_gradients(X, Y)
    np.testing.assert_allclose(gradients[1], [-8.316, -8.316], rtol=2e-6)
    # The third step of evaluation reads the last row: with rates (0.1, 0.5), 1 + 2 * 0.9 * 0.5 * 0.5 = 1.45.
    meta_model.rule.rates[0].assign([0.1, 0.5])
    np.testing.assert_allclose(meta_model(X)[0, 0, 0], 1.45, rtol=2e-6)


def test_momentum():
    # v0 = 2, p1 = 2.8; v1 = 0.5 * 2 + 1.8 = 2.8, p2 = 2.52. Nesterov: p1 = 3 - 0.1 (2 + 1) = 2.7; v1 = 1 + 1.7 = 2.7,
    # p2 = 2.7 - 0.1 (1.7 + 1.35) = 2.395.
    for nesterov, expected in ((False, 2.52), (True, 2.395)):
        rule = keras_maml.learning_rules.Momentum(0.1, momentum=0.5, nesterov=nesterov)
        algorithm = keras_maml.Algorithm(rule, keras_maml.meta_gradients.Unrolled(), 2)
        np.testing.assert_allclose(parabola(algorithm)(X)[0, 0, 0], expected, rtol=2e-6)


def test_reptile_on_the_whole_episode_logs_adaptation_to_the_support():
    # Mean of targets 1 and -2 is -0.5: the gradient is w + 0.5; one step of 0.1: 3 - 0.35, difference 0.35. Predictions
    # come from the support alone: 2.8.
    meta_model = parabola(keras_maml.Reptile(0.1, 1, data="episode"))
    _, predictions, gradients = meta_model.meta_gradients(X, Y)
    np.testing.assert_allclose([gradients[0][0, 0], predictions[0, 0, 0]], [0.35, 2.8], rtol=2e-6)


def test_clipnorm():
    # |g| = 2 clipped to 0.5: 3 - 0.1 * 0.5; the direction is a constant of w, so dphi/dw = 1 and the gradient phi + 2.
    meta_model = parabola(keras_maml.MAML(0.1, 1, clipnorm=0.5))
    _, predictions, gradients = meta_model.meta_gradients(X, Y)
    np.testing.assert_allclose([predictions[0, 0, 0], gradients[0][0, 0]], [2.95, 4.95], rtol=2e-6)


def test_clipnorm_of_a_zero_gradient():
    # The support is already fitted (target 3): phi = w, dphi/dw = 0.9, gradient (3 + 2) * 0.9.
    meta_model = parabola(keras_maml.MAML(0.1, 1, clipnorm=0.5))
    x = {**X, "support_y": np.full((1, 1, 1), 3.0, "float32")}
    _, _, gradients = meta_model.meta_gradients(x, Y)
    np.testing.assert_allclose(gradients[0][0, 0], 4.5, rtol=2e-6)


def test_regularisation_is_at_the_adapted_weights():
    # Penalty 0.5 w^2 in both loops: inner gradient (3 - 1) + 3 = 5, phi = 2.5; the logged loss is
    # (2.5 + 2)^2 / 2 + 2.5^2 / 2 = 13.25; the gradient (4.5 + 2.5) * (1 - 0.2).
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5))]
    )
    model.set_weights([np.array([[3.0]])])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 1))
    meta_model.compile(loss=half_square)
    loss, _, gradients = meta_model.meta_gradients(X, Y)
    np.testing.assert_allclose([loss, gradients[0][0, 0]], [13.25, 5.6], rtol=2e-6)


def test_tasks_count_equally_and_weights_are_normalised():
    # Two tasks, the second with a padded support of weight 0 and a wild label: the same as without it.
    meta_model = parabola(keras_maml.MAML(0.1, 4))
    x = {
        "support_x": np.ones((2, 2, 1), "float32"),
        "support_y": np.array([[[1.0], [1.0]], [[1.0], [1e6]]], "float32"),
        "query_x": np.ones((2, 2, 1), "float32"),
        "support_weight": np.array([[1.0, 1.0], [1.0, 0.0]], "float32"),
    }
    y = np.array([[[-2.0], [-2.0]], [[-2.0], [1e6]]], "float32")
    loss, _, gradients = meta_model.meta_gradients(x, y, np.array([[1.0, 1.0], [0.5, 0.0]], "float32"))
    np.testing.assert_allclose([loss, gradients[0][0, 0]], [9.297534, 2.829234], rtol=2e-6)
