"""Estimators against values that PyTorch made in float64 (`tests/oracles/make_conv4_oracle.py`)."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.learning_rules import LayerwiseSGD, LearnedSGD, Momentum
from keras_maml.meta_gradients import FirstOrder, Implicit, ParameterDifference, Unrolled

ORACLE = np.load(pathlib.Path(__file__).parent / "oracles" / "conv4.npz")
LEARNED = {"meta_sgd": LearnedSGD, "meta_sgd_first_order": LearnedSGD, "layerwise_sgd": LayerwiseSGD}
SCENARIOS = (
    *("maml_1", "maml_3", "fomaml", "meta_sgd", "meta_sgd_first_order", "layerwise_sgd"),
    *("momentum", "nesterov", "anil", "boil"),
)


def conv4():
    inputs = x = keras.Input((8, 8, 1))
    for block in range(4):
        x = keras.layers.Conv2D(4, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        if block < 2:
            x = keras.layers.MaxPooling2D()(x)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(ORACLE[f"weight_{i:02d}"])
    return model


def algorithm(scenario):
    steps = int(ORACLE[f"{scenario}/steps"])
    rate = float(ORACLE[f"{scenario}/learning_rate"]) if f"{scenario}/learning_rate" in ORACLE else 0.1
    if scenario in ("anil", "boil"):
        return {"anil": keras_maml.ANIL, "boil": keras_maml.BOIL}[scenario](rate, steps)
    if scenario in ("momentum", "nesterov"):
        rule = Momentum(rate, float(ORACLE[f"{scenario}/decay"]), nesterov=scenario == "nesterov")
    else:
        rule = LEARNED.get(scenario, keras_maml.learning_rules.SGD)(rate)
    first = scenario in ("fomaml", "meta_sgd_first_order")
    return keras_maml.Algorithm(rule, FirstOrder() if first else Unrolled(), steps)


def joined(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# The estimators share their forward pass: two scenarios suffice for the second mapping.
@pytest.mark.parametrize(
    ("scenario", "task_mapping"),
    [*((scenario, "parallel") for scenario in SCENARIOS), ("maml_3", "vectorized"), ("anil", "vectorized")],
)
def test_conv4_with_stock_batch_normalization(scenario, task_mapping):
    meta_model = keras_maml.MetaModel(conv4(), algorithm(scenario), task_mapping)
    meta_model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if f"{scenario}/rate_00" in ORACLE:
        for i, rate in enumerate(meta_model.rule.rates):
            rate.assign(ORACLE[f"{scenario}/rate_{i:02d}"])
    x = {name: ORACLE[name].astype("int32" if name.endswith("y") else "float32") for name in
         ("support_x", "support_y", "query_x")}
    loss, predictions, gradients = tf.function(meta_model.meta_gradients)(x, ORACLE["query_y"].astype("int32"))
    expected = [ORACLE[f"{scenario}/gradient_{i:02d}"] for i in range(18)]
    if f"{scenario}/rate_gradient_00" in ORACLE:
        expected += [ORACLE[f"{scenario}/rate_gradient_{i:02d}"] for i in range(18)]
    np.testing.assert_allclose(loss, ORACLE[f"{scenario}/loss"], rtol=1e-5)
    np.testing.assert_allclose(predictions, ORACLE[f"{scenario}/query_logits"], atol=1e-4)
    assert [g.shape for g in gradients] == [e.shape for e in expected]
    assert relative_error(joined(gradients[:18]), joined(expected[:18])) < 1e-4
    if len(expected) > 18:
        assert relative_error(joined(gradients[18:]), joined(expected[18:])) < 1e-4


@pytest.mark.parametrize("estimator", [ParameterDifference(), Implicit()])
def test_estimators_without_gradients_elsewhere_refuse_layers_and_learned_rules(estimator):
    with pytest.raises(ValueError, match="needs `layers=None`"):
        keras_maml.Algorithm(keras_maml.learning_rules.ProximalSGD(), estimator, 1, layers="head")
    with pytest.raises(ValueError, match="learned step sizes"):
        keras_maml.Algorithm(LearnedSGD(), estimator, 1)


def test_implicit_needs_a_proximal_rule():
    with pytest.raises(ValueError, match="needs `rule=ProximalSGD"):
        keras_maml.Algorithm(keras_maml.learning_rules.SGD(), Implicit(), 1)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="'support' or 'episode'"):
        ParameterDifference(data="query")
    with pytest.raises(ValueError, match="`iterations` must be at least 1"):
        Implicit(iterations=0)


def test_implicit_solves_the_linear_system_of_the_hessian():
    # Linear regression: the Hessian of the mean squared error is 2 X'X / n, whatever the weights.
    generator = np.random.default_rng(0)
    support_x, query_x = generator.normal(size=(2, 6, 3))
    support_y, query_y = generator.normal(size=(2, 6, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    start = model.get_weights()[0].astype("float64")
    meta_model = keras_maml.MetaModel(model, keras_maml.IMAML(0.2, 100, strength=1.5, iterations=3))
    meta_model.compile(loss="mse")
    x = {"support_x": support_x[None], "support_y": support_y[None], "query_x": query_x[None]}
    _, _, (gradient,) = meta_model.meta_gradients(
        {k: v.astype("float32") for k, v in x.items()}, query_y[None].astype("float32")
    )
    hessian = 2 * support_x.T @ support_x / 6
    minimum = np.linalg.solve(hessian + 1.5 * np.eye(3), 2 * support_x.T @ support_y / 6 + 1.5 * start)
    query_gradient = 2 * query_x.T @ (query_x @ minimum - query_y) / 6
    expected = np.linalg.solve(np.eye(3) + hessian / 1.5, query_gradient)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("statistics", ["batch", "support"])
def test_implicit_agrees_with_finite_differences_at_the_minimum(statistics):
    # Strength 5 and steps of 0.05 contract the distance to the minimum to 0.75 a step or less, where the curvature of
    # the loss is below 30: 150 steps reach it to 1e-18. There the implicit gradient is the derivative of the whole.
    # With "support" moments, the queries depend on the adapted weights through the supports too.
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        keras.utils.set_random_seed(0)
        normalization = keras_maml.layers.BatchNormalization(statistics)
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), normalization, keras.layers.Dense(1)]
        )
        algorithm = keras_maml.IMAML(0.05, 150, strength=5.0, iterations=30)
        meta_model = keras_maml.MetaModel(model, algorithm)
        meta_model.compile(loss="mse")
        generator = np.random.default_rng(0)
        x = {"support_x": generator.normal(size=(1, 8, 3)), "support_y": generator.normal(size=(1, 8, 1))}
        x["query_x"], y = generator.normal(size=(1, 6, 3)), generator.normal(size=(1, 6, 1))
        start = [v.numpy() for v in meta_model.trainable_variables]
        direction = [generator.normal(size=v.shape) for v in start]
        _, _, gradients = meta_model.meta_gradients(x, y)
        slope = sum(np.sum(g * d) for g, d in zip(gradients, direction, strict=True))
        losses = []
        for h in (1e-5, -1e-5):
            values = [v + h * d for v, d in zip(start, direction, strict=True)]
            losses.append(float(meta_model.meta_gradients(x, y, variables=values)[0]))
        np.testing.assert_allclose(slope, (losses[0] - losses[1]) / 2e-5, rtol=1e-5)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
