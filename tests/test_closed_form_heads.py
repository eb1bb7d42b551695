"""Ridge regression against `numpy.linalg.solve`, support vector machines against SciPy, by hand and by their duality
gap, and both within a learner: finite differences, padding, files."""

import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import Algorithm, RidgeHead, SVMHead
from keras_maml.checking.finite_differences import compare
from keras_maml.heads.svm import support_vector_machine
from keras_maml.learning_rules import SGD
from keras_maml.meta_gradients import FirstOrder, Unrolled
from keras_maml.task_mapping import Vectorized

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS, WIDTH = 3, 4
HEADS = {"ridge": RidgeHead, "svm": SVMHead}


def network(*middle):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((2,)), layers.Dense(WIDTH, "tanh"), *middle, layers.Dense(WAYS, name="head")])


def made(start, steps=0, model=None, task_mapping="parallel", loss=CROSS_ENTROPY, **kwargs):
    parts = {"rule": SGD(0.3), "meta_gradient": Unrolled(), "steps": steps, "start": start}
    kept = {name: kwargs.pop(name) for name in ("skip_non_finite",) if name in kwargs}
    meta_model = keras_maml.MetaModel(model or network(), Algorithm(**parts | kwargs), task_mapping, **kept)
    meta_model.compile("adam", loss, metrics=["accuracy"], run_eagerly=True)
    return meta_model


def batch(supports=6):
    """Supports of all classes but the last one in the second task."""
    random = np.random.default_rng(0)
    x = {f"{part}_x": random.normal(size=(2, n, 2)).astype("float32") for part, n in (("support", 6), ("query", 5))}
    x["support_y"] = np.array([[0, 1, 2, 2, 1, 0], [1, 1, 0, 0, 1, 0]])
    x = {name: value if name == "query_x" else value[:, :supports] for name, value in x.items()}
    return x, np.array([[2, 0, 1, 1, 0], [0, 1, 1, 0, 0]])


def tensors(*structure):
    return tf.nest.map_structure(tf.constant, structure)


def head_of(start, x, y, weight=None, ways=4, loss=CROSS_ENTROPY):
    """The weights of an output layer whose inputs are those of the model."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layers.Dense(ways)])
    learner = made(start, model=model, loss=loss).adapt(x, y, support_weight=weight)
    return [v.numpy() for v in learner.trainable_variables]


# -------------------------------------------------------------------------------------------------------------- ridge


def ridge(x, y, weight, regularization):
    matrix = x.T @ (weight[:, None] * x) + regularization * np.eye(x.shape[1])
    return np.linalg.solve(matrix, x.T @ (weight[:, None] * y))


class TestRidgeRegression:
    @pytest.mark.parametrize("supports, width", [(5, 9), (9, 5), (6, 6)])  # dual, primal, either
    @pytest.mark.parametrize("labels", ["indices", "shares"])
    def test_against_numpy(self, supports, width, labels):
        random = np.random.default_rng(1)
        x = random.normal(size=(supports, width))
        y = np.arange(supports) % 3  # of four classes
        weight = random.uniform(0.2, 2, supports)
        expected = ridge(x, np.eye(4)[y], weight, 0.3)
        # A last support of weight 0 may hold anything: 1e30 squared is infinite in float32.
        given = np.concatenate([x, np.full((1, width), 1e30)]), np.append(y, 3), np.append(weight, 0)
        kwargs = {}
        if labels == "shares":
            given = given[0], np.eye(4)[given[1]], given[2]
            kwargs["loss"] = keras.losses.CategoricalCrossentropy(from_logits=True)
        x, y, weight = (np.asarray(t, "int32" if t.dtype == int else "float32") for t in given)
        kernel, bias = head_of(RidgeHead(0.3, scale=2.0, bias=0.25), x, y, weight, **kwargs)
        np.testing.assert_allclose(kernel[:, :3], 2 * expected[:, :3], rtol=2e-4, atol=1e-5)
        np.testing.assert_array_equal(kernel[:, 3], 0)
        np.testing.assert_allclose(bias, [0.25, 0.25, 0.25, -1e9])

    def test_by_hand(self):
        # One support f = (3, 4) for class 0: f (f f' + 7)^-1 = f / 32. The other class has a support of zeros.
        kernel, _ = head_of(RidgeHead(7.0, 64.0), np.array([[3.0, 4], [0, 0]], "float32"), np.array([0, 1]), ways=2)
        np.testing.assert_allclose(kernel, [[6, 0], [8, 0]], rtol=1e-6)

    def test_targets_may_be_any_numbers(self):
        x, y = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
        y[:, 2] = -np.abs(y[:, 2])  # no class without supports
        kernel, bias = head_of(RidgeHead(0.3, scale=1.0), x, y, loss="mse")
        np.testing.assert_allclose(kernel, ridge(x, y, np.ones(5), 0.3), rtol=2e-4, atol=1e-5)
        np.testing.assert_array_equal(bias, np.zeros(4))

    def test_nearly_parallel_features_in_float32(self):
        x = np.ones((4, 3), "float32") * 1e3
        kernel, _ = head_of(RidgeHead(1e-6), x, np.array([0, 1, 0, 1]), ways=2)
        assert np.isfinite(kernel).all()
        np.testing.assert_allclose(x @ kernel, np.full((4, 2), 5.0), rtol=1e-3)  # 10 times the mean of the labels


def r2d2(values, x, y):
    """The meta-objective of R2-D2 in NumPy."""
    kernel, bias, log_regularization, log_scale, shift = values
    losses = []
    for t in range(len(y)):
        support, query = (np.tanh(x[name][t] @ kernel + bias) for name in ("support_x", "query_x"))
        seen = sorted(set(x["support_y"][t].tolist()))
        weights = ridge(support, np.eye(WAYS)[x["support_y"][t]], np.ones(len(support)), np.exp(log_regularization))
        logits = np.full((len(query), WAYS), -np.inf)
        logits[:, seen] = (np.exp(log_scale) * query @ weights + shift)[:, seen]
        losses.append((np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(query)), y[t]]).mean())
    return np.mean(losses)


@pytest.mark.parametrize("supports", [3, 6])  # fewer and more than features
def test_r2d2_in_numpy(supports):
    x, y = batch(supports)
    x["support_y"][1] = [1, 0, 0, 0, 1, 0][:supports]
    meta_model = made(RidgeHead(0.5, 3.0, bias=0.1))
    names = ["kernel", "bias", "log_regularization", "log_scale", "bias"]
    assert [v.path.split("/")[-1] for v in meta_model.trainable_variables] == names
    values = [np.array(v.numpy(), "float64") for v in meta_model.trainable_variables]
    np.testing.assert_allclose(values[2:], [np.log(0.5), np.log(3.0), 0.1], rtol=1e-6)
    loss, _, gradients = meta_model.meta_gradients(x, y)
    np.testing.assert_allclose(loss, r2d2(values, x, y), rtol=1e-5)
    for value, gradient in zip(values, gradients, strict=True):
        slopes = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            kept, ends = value[index], []
            for sign in (1, -1):
                value[index] = kept + sign * 1e-6
                ends.append(r2d2(values, x, y))
            value[index] = kept
            slopes[index] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=2e-5)


# ---------------------------------------------------------------------------------------------- support vector machines


def problem(supports, ways, width, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(supports) % ways
    return random.normal(size=(supports, width)) + random.normal(size=(ways, width))[y], np.eye(ways)[y]


def machine(x, y, bounds, iterations=15):
    return support_vector_machine(*(tf.constant(t, tf.float64) for t in (x, y, bounds)), iterations).numpy()


@tf.function
def run_machine(x, y, iterations):
    return support_vector_machine(x, y, tf.fill(tf.shape(x)[:1], tf.constant(0.1, x.dtype)), iterations)


def slacks(w, x, y):
    """`max over k of 1 - [k = y] + f.w_k - f.w_y`, at least 0 as k may be y."""
    scores = x @ w
    return (1 - y + scores).max(1) - (scores * y).sum(1)


def primal(w, x, y, bounds):
    return 0.5 * (w**2).sum() + (bounds * slacks(w, x, y)).sum()


def by_scipy(x, y, bounds):
    """The dual as Lee et al. state it, in A / c: `A <= c Y`, rows that sum to 0. Returns W and the objective."""
    shape, sums = y.shape, np.kron(np.eye(len(y)), np.ones(y.shape[1]))
    c = bounds[:, None]
    found = scipy.optimize.minimize(
        lambda a: 0.5 * ((x.T @ (c * a.reshape(shape))) ** 2).sum() - (y * c * a.reshape(shape)).sum(),
        np.zeros(y.size),
        jac=lambda a: (c * (x @ (x.T @ (c * a.reshape(shape))) - y)).ravel(),
        bounds=[(None, bound) for bound in y.ravel()],
        constraints={"type": "eq", "fun": lambda a: a.reshape(shape).sum(1), "jac": lambda a: sums},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-11},
    )
    assert found.success, found.message
    return x.T @ (c * found.x.reshape(shape)), -found.fun


class TestSupportVectorMachine:
    @pytest.mark.parametrize("price", [0.02, 0.1, 1.0, 10.0])
    @pytest.mark.parametrize("supports, ways, width", [(5, 5, 6), (9, 3, 4)])
    def test_against_scipy(self, supports, ways, width, price):
        x, y = problem(supports, ways, width)
        bounds = price * np.random.default_rng(2).uniform(0.5, 2, supports)
        w = machine(x, y, bounds)
        expected, objective = by_scipy(x, y, bounds)
        np.testing.assert_allclose(primal(w, x, y, bounds), objective, rtol=1e-5)
        queries = np.random.default_rng(3).normal(size=(20, width))
        np.testing.assert_allclose(queries @ w, queries @ expected, atol=1e-4)

    @pytest.mark.parametrize("supports, ways, width, price", [(25, 5, 64, 0.1), (20, 20, 64, 0.1), (75, 5, 16, 1.0)])
    def test_duality_gap(self, supports, ways, width, price):
        """Any point that the dual allows bounds the primal from below: where the two are equal, both are solutions.

        W = F' A gives A, as F F' is regular here. At W = 0 the primal is the sum of the bounds: the scale of the gap.
        """
        x, y = problem(supports, ways, max(width, supports))
        bounds = np.full(supports, price)
        w = machine(x, y, bounds)
        a = np.linalg.solve(x @ x.T, x @ w)
        p = y - a / price
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
        assert p.min() > -1e-6
        dual = (y * a).sum() - 0.5 * (w**2).sum()
        np.testing.assert_allclose(primal(w, x, y, bounds), dual, rtol=0, atol=1e-7 * bounds.sum())

    @pytest.mark.parametrize("price", [0.1, 1.0])
    def test_by_hand(self, price):
        """Supports f and -f of two classes, |f| = 1: A = (a, -a; -a, a), W = 2 a (f, -f), margins 4 a.

        The margin is 1 at a = 1/4, unless the bound is lower: a = C.
        """
        x = np.array([[0.6, 0.8], [-0.6, -0.8]])
        a = min(price, 0.25)
        w = machine(x, np.eye(2), np.full(2, price))
        np.testing.assert_allclose(w, 2 * a * np.stack([x[0], -x[0]], 1), atol=1e-6)

    def test_the_gradient_by_hand(self):
        """As above, with lengths r: W = f / (2 r^2), where the margin holds; its second column is the negative."""
        x = tf.constant([[3.0, 4.0], [-3.0, -4.0]], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(x)
            # Both supports move together: f = x_0.
            w = support_vector_machine(tf.stack([x[0], -x[0]]), tf.eye(2, dtype=tf.float64), tf.ones(2, tf.float64), 15)
            value = w[0, 0]
        # d/df of f_0 / (2 |f|^2): (1/50 - 2 * 9/1250, -2 * 12/1250)
        np.testing.assert_allclose(tape.gradient(value, x)[0], [0.02 - 0.0144, -0.0192], atol=1e-6)

    def test_classes_without_supports_take_no_part(self):
        x, y = problem(9, 3, 4)
        wider = machine(x, np.insert(y, [1, 3], 0, axis=1), np.full(9, 0.3))
        np.testing.assert_allclose(wider[:, [0, 2, 3]], machine(x, y, np.full(9, 0.3)), atol=1e-8)
        np.testing.assert_allclose(wider[:, [1, 4]], 0, atol=1e-12)

    def test_supports_of_weight_0_and_features_of_0(self):
        x, y = problem(9, 3, 4)
        bounds = np.array([0.3, 0.5, 0.2, 0.3, 0.0, 0.3, 1.0, 0.3, 0.0])
        kept = bounds > 0
        np.testing.assert_allclose(machine(x, y, bounds), machine(x[kept], y[kept], bounds[kept]), atol=1e-5)
        np.testing.assert_allclose(machine(0 * x, y, bounds), 0, atol=1e-12)

    def test_iterations_past_the_solution_change_nothing(self):
        """Rounding makes steps NaN there: features as after a ReLU, of classes that are easily told apart or not."""
        y = np.eye(5)[np.arange(25) % 5]
        for seed in range(10):
            random = np.random.default_rng(seed)
            centres = 3 * random.normal(size=(5, 8))[y.argmax(1)]
            features = tf.constant(np.maximum(random.normal(size=(25, 8)) + centres, 0) * 10.0 ** (seed % 3))
            results = []
            for iterations in (20, 60):
                with tf.GradientTape() as tape:
                    tape.watch(features)
                    w = run_machine(features, tf.constant(y), tf.constant(iterations))
                results.append([w, tape.gradient(w, features)])
                assert all(np.isfinite(t).all() for t in results[-1])
            np.testing.assert_array_equal(*(w for w, _ in results))

    @pytest.mark.parametrize("size", [1e-4, 1e4])
    def test_units_do_not_matter(self, size):
        # f times s and C by s^2 give W by s: logits stay.
        x, y = problem(10, 5, 8)
        expected = x @ machine(x, y, np.full(10, 0.1))
        np.testing.assert_allclose(size * x @ machine(size * x, y, np.full(10, 0.1 / size**2)), expected, atol=1e-6)

    def test_as_the_output_layer(self):
        x, y = (t.astype("float32") for t in problem(6, 3, 4))
        weight = np.array([1, 1, 2, 1, 0.5, 1], "float32")
        kernel, bias = head_of(SVMHead(0.2, scale=3.0), x, y.argmax(1), weight)
        np.testing.assert_allclose(kernel[:, :3], 3 * machine(x, y, 0.2 * weight), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(kernel[:, 3], 0)
        np.testing.assert_allclose(bias, [0, 0, 0, -1e9])


# ----------------------------------------------------------------------------------------------------- within a learner

PARTS = {
    "ridge": (RidgeHead(), 0, {}),
    "ridge with steps": (RidgeHead(bias=0.1), 2, {}),
    "ridge in a loop": (RidgeHead(learned=False), 2, {"meta_gradient": Unrolled(rematerialize=True)}),
    "svm": (SVMHead(3.0), 0, {}),
    "svm with steps": (SVMHead(0.5), 2, {}),
    "svm, the head alone": (SVMHead(learned=False), 2, {"layers": "head"}),
}


@pytest.mark.parametrize("kind", PARTS)
def test_finite_differences_of_the_meta_objective(kind):
    start, steps, kwargs = PARTS[kind]
    found = compare(made(start, steps, **kwargs), *tensors(*batch()), None)
    assert found.precision == "float64", found.reason
    assert found.difference < 1e-5


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]


def test_mappings_agree(head):
    x, y = batch()
    expected = tf.nest.flatten(made(head()).meta_gradients(*tensors(x, y)))
    # The numbers of supports and queries are not known when the step is traced.
    signature = [
        {
            **{name: tf.TensorSpec((2, None, 2)) for name in ("support_x", "query_x")},
            "support_y": tf.TensorSpec((2, None), tf.int64),
        },
        tf.TensorSpec((2, None), tf.int64),
    ]
    function = tf.function(made(head(), task_mapping=Vectorized(jit_compile=False)).meta_gradients, signature)
    for one, other in zip(expected, tf.nest.flatten(function(*tensors(x, y))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_mapping_chosen(head):
    meta_model = keras_maml.MetaModel(network(), Algorithm(SGD(), Unrolled(), 0, start=head()))
    meta_model.compile("adam", CROSS_ENTROPY)
    assert meta_model.explain_task_mapping().startswith(f"Parallel: `{head.__name__}` factorises matrices")


def test_under_xla(head):
    """The weights and their derivative, vectorised over tasks: all that a mapping adds to the rest of a step."""
    x, y = (np.stack(t).astype("float32") for t in zip(*(problem(6, 3, 4, seed) for seed in range(2)), strict=True))
    start = head(0.3)

    def one(task):
        with tf.GradientTape() as tape:
            tape.watch(task)
            kernel, _ = start.compute(*task, tf.ones([6]))
            value = tf.reduce_sum(kernel**3)
        return kernel, tape.gradient(value, task[0])

    compiled = tf.function(lambda *tasks: tf.vectorized_map(one, tasks), jit_compile=True)
    found = compiled(x, y)
    for t in range(2):
        for value, expected in zip(found, one((tf.constant(x[t]), tf.constant(y[t]))), strict=True):
            np.testing.assert_allclose(value[t], expected, rtol=1e-3, atol=1e-3)


def test_padding_and_diverged_tasks(head):
    x, y = batch()
    expected = made(head()).meta_gradients(x, y)
    extra = np.full((2, 1, 2), 7.0, "float32")
    x["support_x"] = np.concatenate([x["support_x"], extra], 1)
    x["support_y"] = np.concatenate([x["support_y"], np.zeros((2, 1), "int64")], 1)
    x["support_weight"] = np.array([[1.0] * 6 + [0.0]] * 2, "float32")
    found = made(head()).meta_gradients(x, y)
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    # Features that overflow: the task says so by its loss, and the step goes on.
    model = keras.Sequential([keras.Input((2,)), layers.Dense(WIDTH), layers.Dense(WAYS)])
    meta_model = made(head(), model=model, skip_non_finite=True)
    x["support_x"][1] = 3e38
    logs = meta_model.test_on_batch(x, y, return_dict=True)
    assert logs["non_finite_tasks"] == 1 and np.isfinite(logs["loss"])


def test_a_task_without_supports(head):
    """All weights are 0, which a compiled step cannot refuse: the logits are equal, so that there is no gradient."""
    x, y = batch()
    meta_model = made(head())
    expected = meta_model.meta_gradients({name: value[:1] for name, value in x.items()}, y[:1])[2]
    x["support_weight"] = np.array([[1.0] * 6, [0.0] * 6], "float32")
    found = tf.function(meta_model.meta_gradients)(tf.nest.map_structure(tf.constant, x), tf.constant(y))[2]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one / 2, other, rtol=1e-3, atol=1e-6)


def test_in_float16(head):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = batch()
    _, predictions, gradients = made(head(), model=model).meta_gradients(x, y)
    assert np.isfinite(predictions).all() and (predictions.numpy()[1, :, 2] < -1e4).all()
    for one, other in zip(gradients, made(head()).meta_gradients(x, y)[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=0.1, atol=0.02)


def test_first_order_is_unrolled_without_steps(head):
    x, y = batch()
    found = (made(head(), meta_gradient=part).meta_gradients(x, y)[2] for part in (FirstOrder(), Unrolled()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_what_is_learned(head, tmp_path):
    x, y = batch()
    fixed, meta_model = made(head(learned=False)), made(head())
    assert fixed.start.weights == []
    np.testing.assert_allclose(fixed.predict(x, verbose=0), meta_model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    weights = meta_model.start.weights
    assert len(weights) == (2 if head is RidgeHead else 1)
    before = [v.numpy() for v in weights]
    meta_model.fit(x, y, verbose=0)
    assert all(v.numpy() != value for v, value in zip(weights, before, strict=True))
    meta_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.start.get_config() == meta_model.start.get_config()
    np.testing.assert_allclose(loaded.predict(x, verbose=0), meta_model.predict(x, verbose=0), rtol=1e-5)


def test_all_ways_out_agree(head, tmp_path):
    x, _ = batch()
    meta_model = made(head(), 1)
    predictions = meta_model.predict(x, verbose=0)
    meta_model.export(tmp_path / "exported")
    signatures = tf.saved_model.load(tmp_path / "exported").signatures
    supports = {name: tf.constant(x[name][1]) for name in ("support_x", "support_y")}
    query = {"query_x": tf.constant(x["query_x"][1])}
    learner = meta_model.adapt(*supports.values())
    outputs = [
        learner.predict(x["query_x"][1], verbose=0),
        signatures["serving_default"](**supports, **query)["predictions"],
        signatures["predict"](**query, **signatures["adapt"](**supports))["predictions"],
    ]
    for output in outputs:
        np.testing.assert_allclose(output, predictions[1], rtol=1e-3, atol=1e-4)


class Counted(layers.Dense):
    """A layer that counts its calls."""

    calls = 0

    def call(self, x, training=None):
        Counted.calls += 1
        return super().call(x)


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_features_are_computed_once_where_only_the_head_adapts(kind):
    body = [Counted(WIDTH, "tanh"), keras_maml.layers.BatchNormalization("support")]
    model = keras.Sequential([keras.Input((2,)), *body, layers.Dense(WAYS, name="head")])
    if kind == "functional":
        model = keras.Model(model.inputs, model.outputs)
    x, y = tensors(*batch())
    calls = {}
    found = []
    for name in ("head", None):
        meta_model = made(RidgeHead(), 1, model=model, layers=name, evaluation_steps=0)
        meta_model(x)  # whose shapes are traced once
        Counted.calls = 0
        found.append(meta_model(x))
        calls[name] = Counted.calls
    # Of two tasks, and once for the shapes: the supports' features and moments, the queries. Without a cut the supports
    # go through the model once more for the moments.
    assert calls["head"] < calls[None]
    np.testing.assert_allclose(*found, rtol=1e-6)
    meta_model = made(RidgeHead(), 2, model=model, layers="head")
    assert compare(meta_model, x, y, None).difference < 1e-5


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RidgeHead(0), "`regularization` must be a positive number. Received: regularization=0"),
        (lambda: RidgeHead(scale=-1.0), "`scale` must be a positive number. Received: scale=-1.0"),
        (lambda: RidgeHead(bias="0"), "`bias` must be a number, or None. Received: bias='0'"),
        (lambda: RidgeHead(bias=True), "Received: bias=True"),
        (lambda: RidgeHead(learned=1), "`learned` must be `True` or `False`. Received: learned=1"),
        (lambda: SVMHead(True), "`C` must be a positive number. Received: C=True"),
        (lambda: SVMHead(float("inf")), "Received: C=inf"),
        (lambda: SVMHead(scale=None), "Received: scale=None"),
        (lambda: SVMHead(learned=None), "Received: learned=None"),
        (lambda: SVMHead(iterations=0), "`iterations` must be an integer of at least 1. Received: iterations=0"),
        (lambda: SVMHead(iterations=2.0), "Received: iterations=2.0"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
