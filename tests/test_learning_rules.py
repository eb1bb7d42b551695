"""Learning rules by trajectories that are worked out in comments, on two parameters of one number each."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers import schedules

import keras_maml
from keras_maml.learning_rules import (
    ALFA,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    LayerwiseSGD,
    LearnedSGD,
    LearningRule,
    MetaCurvature,
    Momentum,
    ProximalSGD,
    RMSprop,
)
from keras_maml.protocols import describe_algorithm, describe_rate

# Gradients of two parameters at steps 0, 1 and 2.
GRADIENTS = [(2.0, -1.0), (4.0, 1.0), (0.0, 2.0)]
START = (1.0, 10.0)


def trajectory(rule, gradients=GRADIENTS, dtype="float32", built_for=2):
    """Parameters after each step."""
    params = [tf.constant([value], dtype) for value in START]
    if not rule.built:
        rule.build([keras.Variable(p, dtype=dtype) for p in params], built_for)
    state, path = rule.init(params), []
    for index, step in enumerate(gradients):
        params, state = rule.step(params, [tf.constant([g], dtype) for g in step], state, index)
        path.append([float(p[0]) for p in params])
        assert {p.dtype for p in params} == {tf.as_dtype(dtype)}
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "rule, expected",
    [
        # p - 0.1 g
        (SGD(0.1), [(0.8, 10.1), (0.4, 10.0), (0.4, 9.8)]),
        # The same while the learned rates are where they start.
        (LearnedSGD(0.1), [(0.8, 10.1), (0.4, 10.0), (0.4, 9.8)]),
        (LayerwiseSGD(0.1), [(0.8, 10.1), (0.4, 10.0), (0.4, 9.8)]),
        # v: (2, -1), (5, 0.5), (2.5, 2.25); p - 0.1 v
        (Momentum(0.1, 0.5), [(0.8, 10.1), (0.3, 10.05), (0.05, 9.825)]),
        # the same v; p - 0.1 (g + 0.5 v): g + 0.5 v = (3, -1.5), (6.5, 1.25), (1.25, 3.125)
        (Momentum(0.1, 0.5, nesterov=True), [(0.7, 10.15), (0.05, 10.025), (-0.075, 9.7125)]),
        # g + 2 (p - p0): (2, -1); (4 - 0.4, 1 + 0.2); (0 - 1.12, 2 - 0.04); p - 0.1 of it
        (ProximalSGD(0.1, 2.0), [(0.8, 10.1), (0.44, 9.98), (0.552, 9.784)]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_trajectory(rule, expected, dtype):
    rule = type(rule).from_config(rule.get_config())  # rates are built for one dtype
    np.testing.assert_allclose(trajectory(rule, dtype=dtype), expected, rtol=1e-12 if dtype == "float64" else 1e-6)


def test_learned_rates_are_one_for_each_weight():
    rule = LearnedSGD(0.1)
    rule.build([keras.Variable([[1.0, 2.0]])], 1)
    assert rule.rates[0].shape == (1, 2)
    rule.rates[0].assign([[0.1, 0.2]])
    # (1, 2) - (0.1, 0.2) * (10, 10)
    ((moved,), _) = rule.step([tf.constant([[1.0, 2.0]])], [tf.constant([[10.0, 10.0]])], (), 0)
    np.testing.assert_allclose(moved, [[0.0, 0.0]], atol=1e-6)


def test_layerwise_rates_are_one_for_each_variable_and_step():
    rule = LayerwiseSGD(0.1)
    rule.build([keras.Variable([1.0]), keras.Variable([10.0])], 2)
    rule.rates[0].assign([0.1, 0.5])
    rule.rates[1].assign([1.0, 2.0])
    # 1 - 0.1 * 2, - 0.5 * 4, - 0.5 * 0: the third step reads the last row. 10 + 1, - 2, - 2 * 2
    np.testing.assert_allclose(trajectory(rule), [(0.8, 11.0), (-1.2, 9.0), (-1.2, 5.0)], rtol=1e-6)


def test_the_index_of_a_step_may_be_a_tensor():
    # Steps 0, 1 and 2 with two rows of rates, as above, in a loop.
    rule = LayerwiseSGD(0.1)
    rule.build([keras.Variable([1.0])], 2)
    rule.rates[0].assign([0.1, 0.5])

    @tf.function
    def path():
        return tf.map_fn(
            lambda index: rule.step([tf.constant([1.0])], [tf.constant([2.0])], (), index)[0][0],
            tf.range(3),
            fn_output_signature=tf.float32,
        )

    np.testing.assert_allclose(path(), [[0.8], [0.0], [0.0]], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip(dtype):
    # The norm of (3, 4) together is 5.
    gradients = [tf.constant([3.0], dtype), tf.constant([4.0], dtype)]
    for clipnorm, expected in ((None, (3, 4)), (5.0, (3, 4)), (7.0, (3, 4)), (1.0, (0.6, 0.8))):
        clipped = SGD(0.1, clipnorm=clipnorm).clip(gradients)
        assert clipped[0].dtype == dtype
        np.testing.assert_allclose([float(g[0]) for g in clipped], expected, rtol=1e-6)


def test_clip_of_a_zero_gradient_has_derivative_one():
    zero = tf.zeros(2)
    with tf.GradientTape() as tape:
        tape.watch(zero)
        (clipped,) = SGD(0.1, clipnorm=0.5).clip([zero])
    np.testing.assert_array_equal(clipped, np.zeros(2))
    np.testing.assert_array_equal(tape.jacobian(clipped, zero), np.eye(2))


def model_of(units):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])


@pytest.mark.parametrize("kind", [LearnedSGD, LayerwiseSGD])
def test_each_meta_model_has_weights_of_its_own(kind):
    algorithm = keras_maml.Algorithm(kind(0.1), keras_maml.meta_gradients.Unrolled(), 3)
    small, large = (keras_maml.MetaModel(model_of(units), algorithm) for units in (1, 5))
    assert not algorithm.rule.built
    for meta_model, units in ((small, 1), (large, 5)):
        shapes = [(2, units), (units,)] if kind is LearnedSGD else [(3,), (3,)]
        assert [tuple(v.shape) for v in meta_model.rule.weights] == shapes
        assert len(meta_model.trainable_variables) == 4
    small.rule.rates[0].assign(small.rule.rates[0] * 2)
    np.testing.assert_allclose(large.rule.rates[0], np.full(large.rule.rates[0].shape, 0.1))


def test_a_rule_does_not_own_the_variables_of_the_model():
    meta_model = keras_maml.MetaModel(model_of(1), keras_maml.MetaSGD(0.1))
    own = {id(v) for v in meta_model.model.variables}
    assert not any(id(v) in own for v in meta_model.rule.variables)
    assert not keras_maml.MetaModel(model_of(1), keras_maml.MAML(0.1)).rule.variables
    # Fixed rates stay where they are, and the model goes on learning.
    meta_model.rule.trainable = False
    assert [v.trainable for v in meta_model.model.variables] == [True, True]
    assert [v is w for v, w in zip(meta_model.trainable_variables, meta_model.model.variables, strict=True)]
    meta_model.compile("sgd", "mse")
    x = {name: np.ones((1, 2, 2 if name.endswith("x") else 1)) for name in ("support_x", "support_y", "query_x")}
    assert len(meta_model.meta_gradients(x, np.ones((1, 2, 1)))[2]) == 2


@pytest.mark.parametrize(
    "rule",
    [
        SGD(0.3, clipnorm=2.0, name="mine"),
        Momentum(0.3, momentum=0.4, nesterov=True, clipnorm=2.0),
        LearnedSGD(0.3, clipnorm=2.0, positive=True, trainable=False),
        LayerwiseSGD(0.3),
        ProximalSGD(0.3, strength=4.0, clipnorm=2.0),
        Adam(0.3, beta_1=0.4, beta_2=0.5, epsilon=0.1, clipnorm=2.0),
        AdamW(0.3, weight_decay=0.2, beta_1=0.4, beta_2=0.5, epsilon=0.1, clipnorm=2.0),
        RMSprop(0.3, rho=0.4, epsilon=0.1, clipnorm=2.0),
        Adagrad(0.3, initial_accumulator_value=0.4, epsilon=0.1, clipnorm=2.0),
        MetaCurvature(0.3, clipnorm=2.0, largest_matrix=7),
        ALFA(0.3, clipnorm=2.0, seed=7),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_configuration(rule):
    config = json.loads(json.dumps(rule.get_config()))
    again = type(rule).from_config(config)
    assert again.get_config() == rule.get_config() and again.trainable == rule.trainable
    arguments = ("learning_rate", "clipnorm", "momentum", "nesterov", "strength", "positive", "beta_1", "beta_2")
    others = ("epsilon", "weight_decay", "rho", "initial_accumulator_value", "largest_matrix", "seed")
    assert set(config) <= {*arguments, *others, "name", "trainable", "dtype"}
    for name in (*arguments, *others):
        assert getattr(again, name, None) == getattr(rule, name, None) == config.get(name)
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule)).name == rule.name


def test_a_rule_keeps_full_precision_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        rule = LearnedSGD(0.1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert rule.dtype_policy.name == "float32"


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), "0.1", True, None, [0.1]])
def test_learning_rate_must_be_a_positive_number(value):
    kinds = (SGD, Momentum, LearnedSGD, LayerwiseSGD, ProximalSGD, Adam, AdamW, RMSprop, Adagrad, MetaCurvature, ALFA)
    for kind in kinds:
        with pytest.raises(ValueError, match="`learning_rate` must be a positive number. Received: learning_rate="):
            kind(value)
    with pytest.raises(ValueError, match="`strength` must be a positive number"):
        ProximalSGD(strength=value)
    if value is not None:
        with pytest.raises(ValueError, match="`clipnorm` must be a positive number"):
            SGD(clipnorm=value)


@pytest.mark.parametrize("momentum", [1.0, -0.1, "0.9", None])
def test_momentum_must_be_below_one(momentum):
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\). Received: momentum="):
        Momentum(momentum=momentum)


def test_a_rule_must_say_how_it_steps():
    class Idle(LearningRule):
        pass

    with pytest.raises(NotImplementedError, match="Idle must implement `step`"):
        trajectory(Idle())


# From 0.4 to a quarter of it within two steps, and 0.4 * 0.5^k.
COSINE = schedules.CosineDecay(0.4, 2, alpha=0.25)
EXPONENTIAL = schedules.ExponentialDecay(0.4, 1, 0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # 0.4 * (0.25 + 0.75 * (1 + cos(pi k / 2)) / 2): 1, 0.625, 0.25 of 0.4
        (COSINE, (0.4, 0.25, 0.1)),
        (EXPONENTIAL, (0.4, 0.2, 0.1)),
        (schedules.PiecewiseConstantDecay([0, 1], [0.4, 0.2, 0.1]), (0.4, 0.2, 0.1)),
    ],
    ids=["cosine", "exponential", "piecewise"],
)
def test_a_schedule_is_read_at_the_step(schedule, rates, dtype):
    # 1 - 2 r0 - 4 r1 - 0 r2, 10 + r0 - r1 - 2 r2
    first, second, third = rates
    expected = [
        (1 - 2 * first, 10 + first),
        (1 - 2 * first - 4 * second, 10 + first - second),
        (1 - 2 * first - 4 * second, 10 + first - second - 2 * third),
    ]
    np.testing.assert_allclose(trajectory(SGD(schedule), dtype=dtype), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [SGD, Momentum, ProximalSGD, Adam, AdamW, RMSprop, Adagrad, MetaCurvature])
def test_every_rule_without_learned_rates_takes_a_schedule(kind):
    # Halved rates halve the last move: the step before has the same rate in both.
    constant, halved = (
        trajectory(kind(schedules.PiecewiseConstantDecay([1], [0.4, rate]))) for rate in (0.4, 0.2)
    )
    constant, halved = np.array(constant), np.array(halved)
    np.testing.assert_allclose(halved[:2], constant[:2], rtol=1e-6)
    np.testing.assert_allclose(halved[2] - halved[1], (constant[2] - constant[1]) / 2, rtol=1e-4)


@pytest.mark.parametrize("kind", [LearnedSGD, LayerwiseSGD, ALFA])
def test_learned_rates_have_no_schedule(kind):
    with pytest.raises(ValueError, match=f"`{kind.__name__}` learns its rates.*Received: learning_rate=CosineDecay"):
        kind(COSINE)


@pytest.mark.parametrize(("steps", "mapping"), [(3, "parallel"), (12, "parallel"), (12, "vectorized")])
def test_a_schedule_in_a_model(steps, mapping):
    # p <- p - rate_k * 2 (p - 1) from 3, on one support x = y = 1: the distance to 1 is multiplied by 1 - 2 rate_k at
    # every step, also where the steps run in a loop. The outer gradient of (p - 0)^2 is 2 p times their product.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    rate = schedules.CosineDecay(0.0, 4, warmup_target=0.3, warmup_steps=2)  # with a branch
    algorithm = keras_maml.Algorithm(SGD(rate), keras_maml.meta_gradients.Unrolled(), steps)
    meta_model = keras_maml.MetaModel(model, algorithm, mapping)
    meta_model.compile(loss="mse")
    ones = tf.ones((1, 1, 1))
    x = {"support_x": ones, "support_y": ones, "query_x": ones}
    loss, _, (gradient,) = tf.function(meta_model.meta_gradients)(x, tf.zeros((1, 1, 1)))
    rates = [0.15 * k if k < 2 else 0.15 * (1 + np.cos(np.pi * min(k - 2, 4) / 4)) for k in range(steps)]
    product = np.prod([1 - 2 * r for r in rates])
    np.testing.assert_allclose(loss, (1 + 2 * product) ** 2, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[2 * (1 + 2 * product) * product]], rtol=1e-5)


def test_a_schedule_is_kept_in_the_configuration():
    config = json.loads(json.dumps(Adam(COSINE).get_config()))
    again = Adam.from_config(config)
    assert isinstance(again.learning_rate, schedules.CosineDecay)
    assert again.learning_rate.get_config() == COSINE.get_config() and again.get_config() == config
    algorithm = keras_maml.Algorithm(SGD(EXPONENTIAL), keras_maml.meta_gradients.Unrolled(), 3)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(algorithm))
    assert again.rule.learning_rate.get_config() == EXPONENTIAL.get_config()
    expected = "SGD(learning_rate=ExponentialDecay(initial_learning_rate=0.4, decay_steps=1, decay_rate=0.5)), Unrolled"
    assert describe_algorithm(algorithm) == expected
    assert describe_rate(algorithm.rule) == expected[len("SGD(learning_rate=") : -len("), Unrolled")]
    assert describe_rate(SGD(0.25)) == 0.25
