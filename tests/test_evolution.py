"""Evolution strategies: by the noise itself, by their mean, and where a loss has no gradient."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import Algorithm
from keras_maml.learning_rules import SGD, LearnedSGD
from keras_maml.meta_gradients import EvolutionStrategies, FirstOrder, Unrolled
from keras_maml.task_mapping import Vectorized

ONES = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}


WITHOUT_XLA = Vectorized(jit_compile=False)


def half_square(y, predictions):
    return tf.square(y[:, 0] - predictions[:, 0]) / 2


def parabola(estimator, rule=None, steps=2, mapping="parallel", **kwargs):
    """One weight 3, prediction w x; a step of 0.1 on a support of x = y = 1 maps w - 1 to 0.9 (w - 1)."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    meta_model = keras_maml.MetaModel(model, Algorithm(rule or SGD(0.1), estimator, steps), mapping, **kwargs)
    meta_model.compile("sgd", half_square)
    return meta_model


def seed_of(meta_model, task=0):
    """As `batches.run_tasks` makes it: from the outer step, the replica 0 and the task."""
    batch = tf.stack([meta_model.outer_step.value, tf.constant(0, tf.int64)])
    return tf.random.experimental.stateless_fold_in(batch, tf.constant(task, tf.int64))


def noise_of(meta_model, estimator, task=0):
    """`(samples, values)`: the noise on all variables of a task in the next outer step."""
    values = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
    draws = [estimator.noise(seed_of(meta_model, task), i, values) for i in range(estimator.samples)]
    return np.array([np.concatenate([np.ravel(t) for t in draw]) for draw in draws])


def query_loss(weight, y):
    """After two steps: phi = 1 + 0.81 (w - 1)."""
    return (1 + 0.81 * (weight - 1) - y) ** 2 / 2


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("mapping", ["parallel", WITHOUT_XLA])  # XLA draws other numbers
def test_by_the_noise(antithetic, mapping):
    # Two tasks with query targets -2 and 0.5, noise of their own each.
    estimator = EvolutionStrategies(5, 0.3, antithetic)
    meta_model = parabola(estimator, mapping=mapping)
    x = {name: np.ones((2, 1, 1), "float32") for name in ONES}
    targets = (-2.0, 0.5)
    step = tf.function(meta_model.meta_gradients, autograph=False)
    for _ in range(2):  # the second outer step has other noise
        expected = []
        for task, y in enumerate(targets):
            e = noise_of(meta_model, estimator, task)[:, 0]
            below = query_loss(3 - 0.3 * e, y) if antithetic else query_loss(3.0, y)
            divisor = (2 if antithetic else 1) * 5 * 0.3
            expected.append(((query_loss(3 + 0.3 * e, y) - below) * e).sum() / divisor)
        assert abs(expected[0] - expected[1]) > 1e-3
        loss, predictions, (gradient,) = step(x, np.reshape(targets, (2, 1, 1)).astype("float32"))
        np.testing.assert_allclose(gradient, [[np.mean(expected)]], rtol=1e-4)
        np.testing.assert_allclose(predictions, np.full((2, 1, 1), 2.62), rtol=1e-5)
        np.testing.assert_allclose(loss, np.mean([query_loss(3.0, y) for y in targets]), rtol=1e-5)


def test_its_mean_is_the_gradient():
    # F = a quadratic, so F(v + s e) - F(v - s e) = 2 s F' e: an estimate is F' times the mean of n squares of normal
    # numbers, of variance 2 / n. With n = 4000, five standard deviations are 5 sqrt(2 / 4000) = 0.112.
    meta_model = parabola(EvolutionStrategies(4000, 0.1), mapping="vectorized")  # under XLA
    slope = 0.81 * (2.62 + 2)
    gradient = tf.function(meta_model.meta_gradients)(ONES, -2 * np.ones((1, 1, 1)))[2][0]
    np.testing.assert_allclose(gradient, [[slope]], rtol=0.5)
    exact = parabola(Unrolled()).meta_gradients(ONES, -2 * np.ones((1, 1, 1)))[2][0]
    np.testing.assert_allclose(exact, [[slope]], rtol=1e-5)


def test_weights_of_a_rule_are_moved_too():
    # Along each direction (e, f) of weight and rate: w' = w + s e, r' = 0.1 + s f, phi = 1 + (1 - r')^2 (w' - 1).
    estimator = EvolutionStrategies(6, 0.05)
    meta_model = parabola(estimator, LearnedSGD(0.1))
    noise = noise_of(meta_model, estimator)

    def loss(sign):
        weight, rate = 3 + sign * 0.05 * noise[:, 0], 0.1 + sign * 0.05 * noise[:, 1]
        return (3 + (1 - rate) ** 2 * (weight - 1)) ** 2 / 2

    expected = ((loss(1) - loss(-1))[:, np.newaxis] * noise).sum(0) / (2 * 6 * 0.05)
    gradients = meta_model.meta_gradients(ONES, -2 * np.ones((1, 1, 1)))[2]
    np.testing.assert_allclose(np.concatenate([np.ravel(g) for g in gradients]), expected, rtol=1e-3)


def test_in_a_loop_of_steps():
    # Twelve steps run in a loop inside the loop over samples; phi = 1 + 0.9^12 (w - 1), y = -2.
    estimator = EvolutionStrategies(3, 0.2)
    for mapping in ("parallel", WITHOUT_XLA):
        meta_model = parabola(estimator, steps=12, mapping=mapping)
        e = noise_of(meta_model, estimator)[:, 0]
        losses = [(3 + 0.9**12 * (2 + sign * 0.2 * e)) ** 2 / 2 for sign in (1, -1)]
        gradient = tf.function(meta_model.meta_gradients)(ONES, -2 * np.ones((1, 1, 1), "float32"))[2][0]
        np.testing.assert_allclose(gradient[0, 0], ((losses[0] - losses[1]) * e).sum() / (2 * 3 * 0.2), rtol=1e-3)


def rounded(y, predictions):
    """Absolute errors in steps of 0.1: of no gradient."""
    return tf.round(10 * tf.abs(y - predictions)) / 10


def lines(generator, tasks):
    """y = slope x + 2, with a slope of a task in [-1, 1]."""
    x = generator.uniform(-1, 1, (tasks, 20, 1))
    y = generator.uniform(-1, 1, (tasks, 1, 1)) * x + 2
    return {"support_x": x[:, :10], "support_y": y[:, :10], "query_x": x[:, 10:]}, y[:, 10:]


def test_a_loss_without_a_gradient_is_learned():
    # One step of 0.1 leaves 0.8 of the distance of the bias from 2 at least: what falls is learned outside.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    algorithm = Algorithm(SGD(0.1), EvolutionStrategies(8, 0.3), 1)
    meta_model = keras_maml.MetaModel(model, algorithm, "vectorized", inner_loss="mse")
    meta_model.compile(keras.optimizers.Adam(0.1), rounded)
    generator = np.random.default_rng(0)
    test = lines(generator, 100)
    before = meta_model.evaluate(*test, verbose=0)
    meta_model.fit(*lines(generator, 1000), batch_size=20, verbose=0)
    assert meta_model.evaluate(*test, verbose=0) < 0.5 * before
    np.testing.assert_allclose(model.layers[0].bias, [2], atol=0.5)


def test_a_support_loss_without_a_gradient_is_refused():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    meta_model = keras_maml.MetaModel(model, Algorithm(SGD(0.1), EvolutionStrategies(), 1))
    meta_model.compile("adam", rounded)
    with pytest.raises(ValueError, match="loss on the supports has no gradient.*inner_loss="):
        meta_model.meta_gradients(ONES, np.ones((1, 1, 1)))


class Spare(keras.layers.Layer):
    """Has a weight that no loss depends on."""

    def build(self, input_shape):
        self.spare = self.add_weight(name="spare")

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("loss", ["mse", rounded])
def test_weights_without_effect_get_no_noise(loss):
    model = keras.Sequential([keras.Input((1,)), Spare(), keras.layers.Dense(1)])
    meta_model = keras_maml.MetaModel(model, Algorithm(SGD(0.1), EvolutionStrategies(2), 1), inner_loss="mse")
    meta_model.compile("adam", loss)
    with pytest.raises(ValueError, match="get no meta-gradient from `EvolutionStrategies`: .*spare"):
        meta_model.meta_gradients(ONES, np.ones((1, 1, 1)))


def test_only_some_layers_adapt_and_a_start_is_not_moved():
    # ZeroHead: w is learned, the head v starts at 0. Prediction v w x, squares / 2; a step of 0.1: v = 0.1 w, as w has
    # the gradient v (...) = 0. Query prediction 0.1 w^2 of y = -2.
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1, use_bias=False)]
    )
    model.set_weights([np.array([[3.0]]), np.array([[7.0]])])
    estimator = EvolutionStrategies(4, 0.2)
    algorithm = Algorithm(SGD(0.1), estimator, 1, layers=model.layers[1], start=keras_maml.ZeroHead())
    meta_model = keras_maml.MetaModel(model, algorithm)
    meta_model.compile("sgd", half_square)
    e = noise_of(meta_model, estimator)[:, 0]
    losses = [(0.1 * (3 + sign * 0.2 * e) ** 2 + 2) ** 2 / 2 for sign in (1, -1)]
    (gradient,) = meta_model.meta_gradients(ONES, -2 * np.ones((1, 1, 1)))[2]
    np.testing.assert_allclose(gradient, [[((losses[0] - losses[1]) * e).sum() / (2 * 4 * 0.2)]], rtol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"samples": 0}, "`samples` must be an integer of at least 1. Received: samples=0"),
        ({"samples": True}, "`samples` must be"),
        ({"scale": 0.0}, "`scale` must be a positive number. Received: scale=0.0"),
        ({"antithetic": 1}, "`antithetic` must be `True` or `False`. Received: antithetic=1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        EvolutionStrategies(**arguments)


def test_configuration():
    estimator = EvolutionStrategies(3, 0.2, False, name="mine")
    again = EvolutionStrategies.from_config(json.loads(json.dumps(estimator.get_config())))
    assert again.get_config() == estimator.get_config()
    assert (again.samples, again.scale, again.antithetic) == (3, 0.2, False)
    assert not estimator.second_order and estimator.draws and not FirstOrder().draws
