"""Sharpness-aware outer gradients: by hand, and against gradients at variables moved by the test."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import Algorithm
from keras_maml.learning_rules import SGD, LearnedSGD, ProximalSGD
from keras_maml.meta_gradients import (
    EvolutionStrategies,
    FirstOrder,
    Implicit,
    MultiStep,
    ParameterDifference,
    SharpnessAware,
    Unrolled,
)


def half_square(y, predictions):
    return tf.square(y[:, 0] - predictions[:, 0]) / 2


def parabola(estimator, rule=None, **kwargs):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    meta_model = keras_maml.MetaModel(model, Algorithm(rule or SGD(0.1), estimator, 2), **kwargs)
    meta_model.compile(keras.optimizers.SGD(1.0), half_square)
    return meta_model


def ones(tasks=1):
    return {name: np.ones((tasks, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}


@pytest.mark.parametrize("mapping", ["parallel", "vectorized"])
def test_the_batch_goes_uphill_together(mapping):
    # Two steps of 0.1 on (w - 1)^2 / 2 give 1 + 0.81 (w - 1); query targets -2 and 9: gradients 0.81 (2.62 + 2) = 3.74
    # and 0.81 (2.62 - 9) = -5.17, of mean -0.7128: uphill is left. At w = 3 - 0.5 it is less by 0.81^2 0.5. Uphill of
    # each task by itself would be right for one and left for the other, and change nothing.
    meta_model = parabola(SharpnessAware(radius=0.5), task_mapping=mapping)
    y = np.array([-2.0, 9.0], "float32").reshape(2, 1, 1)
    loss, predictions, (gradient,) = tf.function(meta_model.meta_gradients)(ones(2), y)
    at_start = 0.81 * (2.62 - 3.5)
    np.testing.assert_allclose(gradient, [[at_start - 0.81**2 * 0.5]], rtol=1e-4)
    np.testing.assert_allclose(predictions, np.full((2, 1, 1), 2.62), rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean((2.62 - y) ** 2) / 2, rtol=1e-5)


def test_a_zero_gradient_stays_zero():
    # The query's target is where adaptation leads.
    meta_model = parabola(SharpnessAware(radius=0.5), SGD(0.5))  # 1 + 0.25 (3 - 1)
    _, _, (gradient,) = meta_model.meta_gradients(ones(), np.full((1, 1, 1), 1.5))
    np.testing.assert_array_equal(gradient, [[0]])


def moved(meta_model, x, y, radius):
    """The gradient where the gradient leads."""
    values = [v.numpy() for v in meta_model.trainable_variables]
    gradients = [g.numpy() for g in meta_model.meta_gradients(x, y)[2]]
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    uphill = [v + radius * g / norm for v, g in zip(values, gradients, strict=True)]
    return meta_model.meta_gradients(x, y, variables=uphill)[2]


PARTS = {
    "unrolled, learned rates": (LearnedSGD(0.1), Unrolled()),
    "first order": (SGD(0.1), FirstOrder()),
    "reptile": (SGD(0.1), ParameterDifference()),
    "implicit": (ProximalSGD(0.1, 1.0), Implicit(3)),
}


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])


def batch(dtype="float64"):
    generator = np.random.default_rng(0)
    x = {name: generator.normal(size=(2, 5, 2 if name[-1] == "y" else 3)).astype(dtype) for name in ones()}
    return x, generator.normal(size=(2, 5, 2)).astype(dtype)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PARTS)
def test_any_estimator(name):
    rule, estimator = PARTS[name]
    model = network()
    plain, sharp = (
        keras_maml.MetaModel(model, Algorithm(rule, part, 2)) for part in (estimator, SharpnessAware(estimator, 0.3))
    )
    for meta_model in (plain, sharp):
        meta_model.compile("sgd", "mse")
    x, y = batch()
    for actual, expected in zip(sharp.meta_gradients(x, y)[2], moved(plain, x, y, 0.3), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_finite_differences_uphill():
    # The outer gradient is that of the meta-objective at the variables moved by radius * g / |g|, with g by differences
    # too: both from losses alone.
    parts = Unrolled(), SharpnessAware(radius=0.3)
    plain, sharp = (keras_maml.MetaModel(network(), Algorithm(SGD(0.3), part, 2)) for part in parts)
    for meta_model in (plain, sharp):
        meta_model.compile("sgd", "mse")
    x, y = batch()
    shapes = [v.shape for v in plain.trainable_variables]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    objective = tf.function(lambda values: plain.meta_gradients(x, y, variables=values)[0], autograph=False)

    def loss(flat):
        parts = zip(np.split(flat, ends[:-1]), shapes, strict=True)
        return float(objective([tf.constant(part.reshape(shape)) for part, shape in parts]))

    def differences(flat):
        steps = 1e-6 * np.eye(len(flat))
        return np.array([(loss(flat + step) - loss(flat - step)) / 2e-6 for step in steps])

    start = np.concatenate([v.numpy().ravel() for v in plain.trainable_variables])
    gradient = differences(start)
    expected = differences(start + 0.3 * gradient / np.linalg.norm(gradient))
    actual = np.concatenate([np.ravel(g) for g in sharp.meta_gradients(x, y)[2]])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    assert np.linalg.norm(expected - gradient) > 0.01 * np.linalg.norm(gradient)


def test_tasks_that_are_not_finite_are_left_out():
    meta_model = parabola(SharpnessAware(radius=0.5), skip_non_finite=True)
    x = ones(2)
    x["support_y"][1] = 1e30  # whose squares are infinite
    logs = meta_model.train_on_batch(x, np.full((2, 1, 1), -2.0, "float32"), return_dict=True)
    assert logs["non_finite_tasks"] == 1
    # The gradient of the first task alone, 0.81 * 4.62, with what half a unit uphill adds.
    np.testing.assert_allclose(meta_model.model.get_weights()[0], 3 - 0.81 * 4.62 - 0.81**2 * 0.5, rtol=1e-4)


def test_it_asks_what_its_estimator_asks():
    with pytest.raises(ValueError, match="needs `rule=ProximalSGD"):
        Algorithm(SGD(), SharpnessAware(Implicit()), 1)
    with pytest.raises(ValueError, match="`ParameterDifference` gives no gradient for learned step sizes"):
        Algorithm(LearnedSGD(), SharpnessAware(ParameterDifference()), 1)
    assert not SharpnessAware(FirstOrder()).second_order and SharpnessAware().second_order
    assert SharpnessAware(EvolutionStrategies()).draws


def test_an_estimator_that_anneals(tmp_path):
    # Steps of 0.1 on (w - 1)^2 / 2 lead from 3 to 2.8 and 2.62. With weights (1/2, 1/2), query target -2 and
    # first-order gradients, G is (4.8 + 4.62) / 2 at 3; half a unit uphill w - 1 is 2.5: (5.25 + 5.025) / 2. At
    # the end of the run it is 0.81 * 5.025.
    meta_model = parabola(SharpnessAware(MultiStep(0.5, first_order_share=0.5), 0.5))
    y = np.full((1, 1, 1), -2.0, "float32")
    for share, expected in ((0, (5.25 + 5.025) / 2), (1, 0.81 * 5.025)):
        meta_model.meta_gradient.anneal(share)
        np.testing.assert_allclose(meta_model.meta_gradients(ones(), y)[2][0], [[expected]], rtol=1e-5)
    meta_model.meta_gradient.anneal(0)
    meta_model.save(tmp_path / "model.keras")
    inner = keras.saving.load_model(
        tmp_path / "model.keras", custom_objects={"half_square": half_square}
    ).meta_gradient.meta_gradient
    np.testing.assert_array_equal(inner.step_weights, [0.5, 0.5])
    assert int(inner.order) == 1
    x = {name: np.repeat(value, 2, 0) for name, value in ones().items()}
    meta_model.fit(tf.data.Dataset.from_tensors((x, np.repeat(y, 2, 0))), epochs=2, verbose=0)
    inner = meta_model.meta_gradient.meta_gradient
    np.testing.assert_array_equal(inner.step_weights, [0, 1])


def test_nothing_to_learn():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    algorithm = Algorithm(SGD(), SharpnessAware(), 0, start=keras_maml.PrototypeHead())
    meta_model = keras_maml.MetaModel(model, algorithm)
    meta_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = {"support_x": np.eye(2)[None], "query_x": np.eye(2)[None], "support_y": np.array([[0, 1]])}
    loss, _, gradients = meta_model.meta_gradients(x, np.array([[0, 1]]))
    # Prototypes (1, 0) and (0, 1): squared distances of 0 and 2.
    np.testing.assert_allclose(loss, np.log(1 + np.exp(-2)), rtol=1e-5)
    assert gradients == []


@pytest.mark.parametrize("wrong", ["unrolled", SharpnessAware(), Unrolled])
def test_bad_estimators(wrong):
    with pytest.raises(ValueError, match="must be another `MetaGradient`.*Received"):
        SharpnessAware(wrong)


def test_bad_radius():
    with pytest.raises(ValueError, match="`radius` must be a positive number. Received: radius=0"):
        SharpnessAware(radius=0)


def test_configuration(tmp_path):
    estimator = SharpnessAware(Unrolled(truncate=1), 0.2, name="mine")
    again = SharpnessAware.from_config(json.loads(json.dumps(estimator.get_config())))
    assert again.get_config() == estimator.get_config() and again.meta_gradient.truncate == 1
    meta_model = parabola(estimator)
    meta_model(ones())
    meta_model.compile(loss="mse")
    meta_model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").algorithm.meta_gradient
    assert loaded.get_config() == estimator.get_config()
