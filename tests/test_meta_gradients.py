"""Estimators against values that PyTorch made in float64 (`tests/oracles/make_conv4_oracle.py`)."""

import collections
import functools
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import inner_loop
from keras_maml.learning_rules import SGD, LayerwiseSGD, LearnedSGD, LearningRule, Momentum, ProximalSGD
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
    [*((scenario, "parallel") for scenario in SCENARIOS), ("maml_1", "vectorized"), ("anil", "vectorized")],
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
    for iterations in (0, 2.5, True, "a", float("nan")):
        with pytest.raises(ValueError, match="`iterations` must be an integer of at least 1"):
            Implicit(iterations)
    with pytest.raises(ValueError, match=r"`solver` must be one of \('conjugate_gradient', 'neumann'\). Received: so"):
        Implicit(solver="cg")


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


@pytest.mark.parametrize("terms", [1, 5, 60])
def test_neumann_series_of_the_hessian(terms):
    # As above. With rate r = 0.2 * 1.5 and M = I + H / 1.5 the series is r sum (I - r M)^i g, dense. The eigenvalues of
    # H are below 2 / 0.2 - 1.5: it converges to the solution, here by 0.7 or less a term, 0.7^60 = 5e-10.
    generator = np.random.default_rng(0)
    support_x, query_x = generator.normal(size=(2, 6, 3))
    support_y, query_y = generator.normal(size=(2, 6, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    start = model.get_weights()[0].astype("float64")
    algorithm = keras_maml.Algorithm(ProximalSGD(0.2, 1.5), Implicit(terms, "neumann"), 100)
    meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
    meta_model.compile(loss="mse")
    x = {"support_x": support_x[None], "support_y": support_y[None], "query_x": query_x[None]}
    x = {k: v.astype("float32") for k, v in x.items()}
    _, _, (gradient,) = meta_model.meta_gradients(x, query_y[None].astype("float32"))
    hessian = 2 * support_x.T @ support_x / 6
    assert np.linalg.eigvalsh(hessian).max() < 2 / 0.2 - 1.5
    minimum = np.linalg.solve(hessian + 1.5 * np.eye(3), 2 * support_x.T @ support_y / 6 + 1.5 * start)
    query_gradient = 2 * query_x.T @ (query_x @ minimum - query_y) / 6
    matrix = np.eye(3) + hessian / 1.5
    powers = [np.linalg.matrix_power(np.eye(3) - 0.3 * matrix, i) for i in range(terms + 1)]
    np.testing.assert_allclose(gradient, 0.3 * sum(powers) @ query_gradient, rtol=1e-4, atol=1e-5)
    if terms == 60:
        np.testing.assert_allclose(gradient, np.linalg.solve(matrix, query_gradient), rtol=1e-4, atol=1e-5)


def test_implicit_maml_learns_sinusoids():
    # The start is that of an untrained net, adapted too; what training adds makes the loss less than 0.7 of it (0.26 to
    # 0.42 with other seeds and settings).
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(20, "relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((1,)), *hidden, keras.layers.Dense(1)])
    meta_model = keras_maml.MetaModel(model, keras_maml.IMAML(), "vectorized")
    meta_model.compile(keras.optimizers.Adam(0.01), "mse")
    test = next(iter(keras_maml.datasets.sinusoid(tasks=100, seed=keras_maml.episodes.fixed(100))))
    before = meta_model.evaluate(*test, batch_size=100, verbose=0)
    meta_model.fit(keras_maml.datasets.sinusoid(seed=0), steps_per_epoch=100, verbose=0)
    assert meta_model.evaluate(*test, batch_size=100, verbose=0) < 0.7 * before


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


# ------------------------------------------------------------------------------- truncation, rematerialisation, loops

graph = functools.partial(tf.function, autograph=False)
WAYS = {
    "eager": ("parallel", lambda step: step),
    "graph": ("parallel", graph),
    "vectorized": (keras_maml.task_mapping.Vectorized(jit_compile=False), graph),
    "vectorized, xla": ("vectorized", graph),
}


@pytest.fixture
def always_loop(monkeypatch):
    monkeypatch.setattr(inner_loop, "MOST_UNROLLED_STEPS", 0)


def parabola(rule, estimator, steps, mapping="parallel"):
    """One weight 3, prediction w x with x = 1, loss (w - target)^2 / 2; a step of 0.1 maps w - 1 to 0.9 (w - 1)."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(rule, estimator, steps), mapping)
    meta_model.compile(loss=lambda y, predictions: tf.square(y[:, 0] - predictions[:, 0]) / 2)
    return meta_model


LINE = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}, -2 * np.ones((1, 1, 1))


@pytest.mark.parametrize(
    "truncate, rematerialize, factor",
    [
        *((None, False, 0.9**4), (0, False, 1), (1, False, 0.9), (3, False, 0.9**3), (9, False, 0.9**4)),
        *((None, True, 0.9**4), (1, True, 0.9), (3, True, 0.9**3), (4, True, 0.9**4)),
    ],
)
def test_truncated_meta_gradients_of_a_parabola(truncate, factor, rematerialize):
    # Four steps lead to 1 + 2 * 0.9^4 = 2.3122, with the query gradient 4.3122. The last n steps multiply it by 0.9
    # each, the others by 1.
    #
    # Rates: phi depends on the rate of step k by -(gradient k) * 0.9 for each later step that is differentiated
    # through, where the gradients are 2, 1.8, 1.62, 1.458.
    estimator = Unrolled(truncate, rematerialize)
    loss, _, (gradient, rates) = parabola(LayerwiseSGD(0.1), estimator, 4).meta_gradients(*LINE)
    np.testing.assert_allclose([loss, gradient[0, 0]], [4.3122**2 / 2, 4.3122 * factor], rtol=2e-6)
    later = [min(3 - k, 4 if truncate is None else truncate) for k in range(4)]
    expected = [-4.3122 * 2 * 0.9**k * 0.9**n for k, n in enumerate(later)]
    np.testing.assert_allclose(rates, expected, rtol=2e-6)


@pytest.mark.parametrize("way", ["graph", "vectorized, xla"])
@pytest.mark.parametrize("estimator, factor", [(Unrolled(truncate=20), 0.9**20), (FirstOrder(), 1)])
def test_a_hundred_steps(estimator, factor, way):
    # 1 + 2 * 0.9^100 = 1.000053; the query gradient 3.000053 times 0.9^n for the last n steps.
    mapping, wrap = WAYS[way]
    meta_model = parabola(SGD(0.1), estimator, 100, mapping)
    loss, _, (gradient,) = wrap(meta_model.meta_gradients)(*LINE)
    np.testing.assert_allclose([loss, gradient[0, 0]], [3.000053**2 / 2, 3.000053 * factor], rtol=1e-5)
    if way == "graph":
        np.testing.assert_allclose(wrap(meta_model)(LINE[0])[0, 0, 0], 1.000053, rtol=1e-6)


def test_a_loop_is_traced_once():
    # A graph of 100 steps is that of 50: it compiles in seconds.
    def nodes(steps):
        step = graph(parabola(Momentum(0.1), Unrolled(), steps).meta_gradients)
        return len(step.get_concrete_function(*LINE).graph.as_graph_def().SerializeToString())

    assert abs(nodes(100) - nodes(50)) < 0.01 * nodes(50)


def test_rules_whose_state_changes_structure_run_unrolled_only(always_loop):
    class Restless(LearningRule):
        def step(self, params, gradients, state, index):
            return params, (*state, gradients)

    with pytest.raises(ValueError, match="must return a state structured as the one that `init` returns"):
        parabola(Restless(), Unrolled(), 2).meta_gradients(*LINE)


def two_layers():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2, name="head")]
    )
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(size=w.shape) for w in model.get_weights()])
    x = {name: generator.normal(size=(2, 4, 2 if name[-1] == "y" else 3)).astype("float32") for name in LINE[0]}
    return model, (x, generator.normal(size=(2, 4, 2)).astype("float32"))


class Spare(keras.layers.Layer):
    """Has a weight that no loss depends on."""

    def build(self, input_shape):
        self.spare = self.add_weight(name="spare")

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("way", ["eager", "graph"])
def test_a_loop_does_not_hide_weights_without_a_gradient(always_loop, way, rematerialize):
    # Through a loop they would have a gradient of 0 in place of none, and nobody would be told.
    model = keras.Sequential([keras.Input((3,)), Spare(), keras.layers.Dense(2)])
    meta_model = keras_maml.MetaModel(
        model, keras_maml.Algorithm(Momentum(0.1), Unrolled(rematerialize=rematerialize), 2), "parallel"
    )
    meta_model.compile(loss="mse")
    with pytest.raises(ValueError, match="get no meta-gradient from `Unrolled`: .*spare"):
        WAYS[way][1](meta_model.meta_gradients)(*two_layers()[1])


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_weights_that_only_the_queries_reach_keep_their_gradient_in_a_loop(always_loop, way):
    # The inner loss reads the first of two outputs, the outer both: the second head does not move, and is learned.
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    model = keras.Model(inputs, {name: keras.layers.Dense(2, name=name)(hidden) for name in ("one", "two")})
    _, (x, y) = two_layers()
    x, y = {**x, "support_y": {name: x["support_y"] for name in ("one", "two")}}, {"one": y, "two": y}
    results = []
    for limit in (0, 10):
        inner_loop.MOST_UNROLLED_STEPS = limit  # put back by the fixture
        mapping, wrap = WAYS[way]
        inner_loss = {"one": "mse", "two": None}
        meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 2), mapping, inner_loss=inner_loss)
        meta_model.compile(loss={"one": "mse", "two": "mse"})
        results.append(wrap(meta_model.meta_gradients)(x, y)[2])
    assert all(np.any(g != 0) for g in results[0])
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_first_order_has_nothing_to_truncate_or_rematerialise():
    with pytest.raises(TypeError):
        FirstOrder(truncate=2)
    with pytest.raises(ValueError, match="with `truncate=0` there are none"):
        FirstOrder(rematerialize=True)
    with pytest.raises(ValueError, match="with `truncate=0` there are none"):
        Unrolled(truncate=0, rematerialize=True)
    assert not FirstOrder().second_order and not Unrolled(truncate=0).second_order
    assert Unrolled().second_order and Unrolled(truncate=1).second_order


@pytest.mark.parametrize("value", [-1, 1.0, "2", True])
def test_truncate_must_be_a_number_of_steps(value):
    with pytest.raises(ValueError, match="`truncate` must be `None` or an integer of at least 0. Received: truncate="):
        Unrolled(truncate=value)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_rematerialize_must_be_a_truth_value(value):
    with pytest.raises(ValueError, match="`rematerialize` must be `True` or `False`. Received: rematerialize="):
        Unrolled(rematerialize=value)


@pytest.mark.parametrize("estimator", [Unrolled(2, True, name="mine"), Unrolled(truncate=0), Unrolled(), FirstOrder()])
def test_configuration(estimator, tmp_path):
    config = json.loads(json.dumps(estimator.get_config()))
    again = type(estimator).from_config(config)
    meta_model = parabola(SGD(0.1), estimator, 3)
    meta_model(LINE[0])
    meta_model.compile(loss="mse")
    meta_model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").algorithm.meta_gradient
    for other in (again, loaded):
        assert type(other) is type(estimator) and other.get_config() == estimator.get_config()
        for name in ("truncate", "rematerialize", "second_order", "name"):
            assert getattr(other, name) == getattr(estimator, name)


# ------------------------------------------------------------------------------------------------ work not done twice


def needed_convolutions(algorithm, freeze=False):
    """`(Conv2D, Conv2DBackpropInput, Conv2DBackpropFilter)`: ops of a task that its results depend on.

    A graph also holds ops that nothing reads, such as the gradient of a convolution with respect to images; they never
    run.
    """
    layers = [keras.layers.Conv2D(4, 3, activation="tanh", use_bias=False) for _ in range(2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Flatten(), keras.layers.Dense(2)])
    layers[0].trainable = not freeze
    meta_model = keras_maml.MetaModel(model, algorithm(model), "parallel")
    meta_model.compile(loss="mse")
    x = {name: tf.zeros((2, 3, 2) if name[-1] == "y" else (2, 3, 8, 8, 3)) for name in LINE[0]}
    step = graph(meta_model.meta_gradients).get_concrete_function(x, tf.zeros((2, 3, 2)))
    counts = collections.Counter()
    for body in step.graph.as_graph_def().library.function:
        nodes = {node.name: node for node in body.node_def}
        needed, waiting = set(), list(body.ret.values())
        while waiting:
            name = waiting.pop().lstrip("^").split(":")[0]
            if name in nodes and name not in needed:
                needed.add(name)
                waiting.extend(nodes[name].input)
        counts.update(nodes[name].op for name in needed)
    return tuple(counts[op] for op in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"))


def adapting_second(model):
    return keras_maml.Algorithm(SGD(0.1), Unrolled(), 2, layers=(model.layers[1], model.layers[3]))


# Two convolutions; images have no gradient. The queries: forward 2, of the filters 2, of the second one's inputs 1.
# A second-order step, the first adapting convolution, 4: forward; of its filters; and in the outer pass, with the
# cotangent v of its inner filter gradient, conv(x, v), and of its filters. Each one above, 9: forward; of inputs; of
# filters; conv(x, v) and of inputs with v; the two derivatives of the inner gradient of inputs, one by the filters and
# one conv; of inputs and of filters in the outer pass. As (Conv2D, BackpropInput, BackpropFilter), (2, 0, 2) and
# (3, 3, 3).
@pytest.mark.parametrize(
    "algorithm, freeze, expected",
    [
        # 2 x [(2, 0, 2) + (3, 3, 3)] + (2, 1, 2)
        (lambda _: keras_maml.MAML(0.1, 2), False, (12, 7, 12)),
        # Only the dense head does not adapt.
        (lambda _: keras_maml.BOIL(0.1, 2), False, (12, 7, 12)),
        # Forward, of filters, and of inputs for the second: 2 x (2, 1, 2) + (2, 1, 2)
        (lambda _: keras_maml.FOMAML(0.1, 2), False, (6, 3, 6)),
        # The body once for supports and once for queries: 2 x (2, 1, 2)
        (lambda _: keras_maml.ANIL(0.1, 2), False, (4, 2, 4)),
        # A frozen first layer runs forward, for supports and for queries: (1, 0, 0) + 2 x (2, 0, 2) + (2, 0, 1)
        (lambda _: keras_maml.MAML(0.1, 2), True, (7, 0, 5)),
        # A first layer that is learned and does not adapt runs once, (1, 0, 1). The second is the first that adapts,
        # with a gradient for its inputs in the outer pass: 2 x (2, 2, 2) + (2, 1, 2)
        (adapting_second, False, (7, 5, 7)),
    ],
    ids=["MAML", "BOIL", "FOMAML", "ANIL", "frozen", "second layer"],
)
def test_no_convolution_is_done_twice(algorithm, freeze, expected):
    assert needed_convolutions(algorithm, freeze) == expected


def test_a_rematerialised_step_runs_forward_and_backward_twice():
    # Each loop is traced once: forward (2, 1, 2); backward a second-order step, (5, 3, 5), where gradient descent does
    # not need the values of the two inner filter gradients; queries (2, 1, 2).
    algorithm = keras_maml.Algorithm(SGD(0.1), Unrolled(rematerialize=True), 2)
    assert needed_convolutions(lambda _: algorithm) == (9, 5, 7)
