"""Per-task values against models that `adapt` makes one by one, judged by NumPy and by fresh Keras metrics."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import episodes
from keras_maml.evaluation import Evaluator, evaluate_episodes, fingerprints

TASKS, SUPPORTS, QUERIES, WAYS = 3, 4, 6, 3
STEPS = (0, 1, 3)


def random(seed=0):
    return np.random.default_rng(seed)


def inputs_of(shape=(5,), seed=0):
    """`(support_x, query_x)` of all tasks."""
    draw = random(seed).normal
    return [draw(size=(TASKS, n, *shape)).astype("float32") for n in (SUPPORTS, QUERIES)]


def labels_of(seed=1, ways=WAYS, shape=()):
    return [random(seed + n).integers(0, ways, (TASKS, n, *shape)).astype("int32") for n in (SUPPORTS, QUERIES)]


def batch(xs, ys, *weight):
    return ({"support_x": xs[0], "support_y": ys[0], "query_x": xs[1]}, ys[1], *weight)


def dense(outputs=WAYS, *middle):
    body = [layers.Dense(6), *middle, layers.Activation("tanh")]
    return keras.Sequential([keras.Input((5,)), *body, layers.Dense(outputs)])


def compiled(model, loss, rate=0.5, steps=3, mapping="parallel", **more):
    meta_model = keras_maml.MetaModel(model, keras_maml.FOMAML(rate, steps), mapping)
    meta_model.compile(keras.optimizers.SGD(0.1), loss, **more)
    return meta_model


def classifier(model=None, **more):
    more = {"metrics": ["accuracy"], **more}
    return compiled(model or dense(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **more)


def cross_entropy(labels, logits):
    """`(...)` from integers `(...)` and logits `(..., C)`."""
    logits = logits - logits.max(-1, keepdims=True)
    picked = np.take_along_axis(logits, labels[..., None].astype(int), -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - picked


def accuracy(labels, logits, weight=None):
    return np.average(logits.argmax(-1) == labels, weights=weight)


def pick(structure, task, keep):
    return keras.tree.map_structure(lambda t: np.asarray(t)[task][keep], structure)


def alone(meta_model, data, judge, steps=STEPS):
    """`{name: (tasks, steps)}` by a learner of its own for each task and number of steps; padding is cut off.

    `judge(y, predictions, weight)` gives the values of one task by name.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    found = {}
    for task in range(len(keras.tree.flatten(y)[0])):
        real = [slice(None) if w is None else np.asarray(w)[task] > 0 for w in (x.get("support_weight"), weight)]
        support_weight = None if "support_weight" not in x else pick(x["support_weight"], task, real[0])
        support = [pick(x[name], task, real[0]) for name in ("support_x", "support_y")]
        for k in steps:
            learner = meta_model.adapt(*support, steps=k, support_weight=support_weight)
            predictions = keras.tree.map_structure(np.asarray, learner(pick(x["query_x"], task, real[1])))
            values = judge(pick(y, task, real[1]), predictions, None if weight is None else pick(weight, task, real[1]))
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    return {name: np.reshape(values, (-1, len(steps))) for name, values in found.items()}


def check(meta_model, data, judge, steps=STEPS):
    """The report, after a comparison with `alone`."""
    report = evaluate_episodes(meta_model, data, tasks=None, steps=steps, verbose=0)
    expected = alone(meta_model, data, judge, steps)
    assert set(report.metrics) == set(expected)
    for name, values in expected.items():
        assert report.values[name].shape == values.shape
        np.testing.assert_allclose(report.values[name], values, rtol=2e-5, atol=2e-6, err_msg=name)
        # Else all numbers of steps might be one.
        assert np.abs(np.diff(values)).max() > 1e-3 or name != "loss"
    np.testing.assert_array_equal(report.loss_before, report.of("loss", 0))
    return report


VECTORS, CLASSES = random().normal(size=(60, 5)).astype("float32"), np.arange(60) % 6


def dataset(tasks=4, seed=0, n=12, **more):
    return episodes.from_arrays(VECTORS, CLASSES, WAYS, 1, 2, tasks=tasks, seed=episodes.fixed(n, seed), **more)


@pytest.fixture(scope="module")
def evaluator():
    """One for all tests that are not about the model: what is traced once serves them all."""
    made = Evaluator(classifier(), (0, 1))
    made.report(dataset(), None, verbose=0)
    return made


def test_accuracy_and_the_mean_that_evaluate_logs():
    meta_model = classifier(dense(WAYS, layers.BatchNormalization(), layers.Dropout(0.5)))
    data = batch(inputs_of(), labels_of())
    report = check(
        meta_model, data, lambda y, p, _: {"loss": cross_entropy(y, p).mean(), "accuracy": accuracy(y, p)}
    )
    assert report.directions == {"loss": "down", "accuracy": "up"}
    logs = meta_model.evaluate(*data, return_dict=True, verbose=0)  # after 3 steps
    for name, value in logs.items():
        assert report.summary(name, 3).mean == pytest.approx(value, rel=1e-6)


def test_weights_of_queries():
    weight = random(3).uniform(0.1, 2, (TASKS, QUERIES)).astype("float32")
    weight[0, 1] = weight[2, 4] = 0
    judge = lambda y, p, w: {  # noqa: E731
        "loss": np.average(cross_entropy(y, p), weights=w),
        "accuracy": accuracy(y, p),
        "weighted_accuracy": accuracy(y, p, w),
    }
    meta_model = classifier(weighted_metrics=["accuracy"])
    data = batch(inputs_of(), labels_of(), weight)
    report = check(meta_model, data, judge)
    assert report.directions["weighted_accuracy"] == "up"
    # The weight may stand in x, where `predict` reads it, too.
    x = data[0] | {"query_weight": weight}
    again = evaluate_episodes(meta_model, (x, data[1]), None, STEPS, verbose=0)
    np.testing.assert_array_equal(again.values["loss"], report.values["loss"])
    np.testing.assert_array_equal(again.values["weighted_accuracy"], report.values["weighted_accuracy"])


def test_regression_vectorised_and_in_a_loop_of_steps():
    targets = [t.astype("float32") for t in (random(5).normal(size=(TASKS, n, 1)) for n in (SUPPORTS, QUERIES))]
    judge = lambda y, p, _: {"loss": ((y - p) ** 2).mean(), "mae": np.abs(y - p).mean()}  # noqa: E731
    report = check(
        compiled(dense(1), "mse", rate=0.1, mapping="auto", metrics=["mae"]),
        batch(inputs_of(), targets),
        judge,
        steps=(0, 1, 14),
    )
    assert report.directions["mae"] == "down"
    assert report.protocol["queries_of_a_task"] == "6"


def test_metrics_of_several_variables_start_anew_with_each_task():
    def judge(y, p, _):
        area = keras.metrics.AUC(from_logits=True, num_thresholds=50)
        area.update_state(y, p)
        logs = np.log(np.exp(p) / np.exp(p).sum(-1, keepdims=True))
        return {
            "loss": -(y * logs).sum(-1).mean(),
            "auc": float(area.result()),
            "categorical_accuracy": (y.argmax(-1) == p.argmax(-1)).mean(),
        }

    area = keras.metrics.AUC(from_logits=True, num_thresholds=50, name="auc")
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    meta_model = compiled(dense(), loss, metrics=[area, "categorical_accuracy"])
    one_hot = [np.eye(WAYS, dtype="float32")[labels] for labels in labels_of()]
    report = check(meta_model, batch(inputs_of(), one_hot), judge)
    assert report.directions["auc"] == "up"
    # The metric of `compile` itself is another object and counts nothing.
    assert not any(np.any(v.numpy()) for v in area.variables)


def test_padded_episodes():
    meta_model = classifier(dense(4, layers.BatchNormalization()), weighted_metrics=["accuracy"])
    dataset = episodes.from_arrays(
        random().normal(size=(60, 5)).astype("float32"),
        np.arange(60) % 6,
        ways=(2, 4),
        shots=episodes.PerClass((1, 3)),
        queries=(1, 2),
        tasks=3,
        seed=3,
        batches=1,
    )
    x, y, weight = data = tf.nest.map_structure(np.asarray, next(iter(dataset)))
    assert 0 < weight.mean() < 1
    assert 0 < x["support_weight"].mean() < 1
    judge = lambda y, p, w: {  # noqa: E731
        "loss": cross_entropy(y, p).mean(),
        "accuracy": accuracy(y, p),
        "weighted_accuracy": accuracy(y, p),
    }
    report = check(meta_model, data, judge, (0, 3))
    ways = [len(set(labels[real > 0])) for labels, real in zip(x["support_y"], x["support_weight"], strict=True)]
    assert report.protocol["ways"] == f"{min(ways)} to {max(ways)}"
    loss = meta_model.evaluate(dataset, return_dict=True, verbose=0)["loss"]
    assert report.summary("loss").mean == pytest.approx(loss, rel=1e-6)


def test_dicts_of_inputs_and_of_outputs():
    entries = {name: keras.Input((5,), name=name) for name in ("left", "right")}
    joined = layers.Dense(6, "tanh")(layers.Concatenate()([entries["right"], entries["left"]]))
    outputs = {"kind": layers.Dense(WAYS, name="kind")(joined), "size": layers.Dense(1, name="size")(joined)}
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    metrics = {"kind": ["accuracy"], "size": [keras.metrics.MeanAbsoluteError(name="error")]}
    weights = {"kind": 1.0, "size": 0.5}
    meta_model = compiled(keras.Model(entries, outputs), losses, metrics=metrics, loss_weights=weights)
    xs = [{"left": a, "right": b} for a, b in zip(inputs_of(), inputs_of(seed=1), strict=True)]
    sizes = [t.astype("float32") for t in (random(5).normal(size=(TASKS, n, 1)) for n in (SUPPORTS, QUERIES))]
    ys = [{"kind": kind, "size": size} for kind, size in zip(labels_of(), sizes, strict=True)]

    def judge(y, p, _):
        squares = (y["size"] - p["size"]) ** 2
        return {
            "loss": cross_entropy(y["kind"], p["kind"]).mean() + 0.5 * squares.mean(),
            "kind_accuracy": accuracy(y["kind"], p["kind"]),
            "size_error": np.abs(y["size"] - p["size"]).mean(),
        }

    report = check(meta_model, batch(xs, ys), judge)
    assert report.directions == {"loss": "down", "kind_accuracy": "up", "size_error": "down"}


def test_a_list_of_outputs_in_one_batch():
    # tf.data would make one tensor of a list of two labels.
    entry = keras.Input((5,))
    model = keras.Model(entry, [layers.Dense(1, name="a")(entry), layers.Dense(1, name="b")(entry)])
    targets = [random(n).normal(size=(TASKS, n, 1)).astype("float32") for n in (SUPPORTS, QUERIES)]
    data = batch(inputs_of(), [[t, -t] for t in targets])
    judge = lambda y, p, _: {"loss": ((y[0] - p[0]) ** 2).mean() + ((y[1] - p[1]) ** 2).mean()}  # noqa: E731
    check(compiled(model, ["mse", "mse"], 0.1, run_eagerly=True), data, judge, (0, 1))


def test_masks():
    # A tag for each token; the layers hang on the predictions which tokens there are.
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(7, 3, mask_zero=True),
            layers.LSTM(4, return_sequences=True),
            layers.Dense(WAYS),
        ]
    )
    tokens = [random(n).integers(1, 7, (TASKS, n, 4)).astype("int32") for n in (SUPPORTS, QUERIES)]
    for part in tokens:
        part[:, ::2, 2:] = 0
        part[1, 1, 1:] = 0
    x, y = batch(tokens, labels_of(shape=(4,)))

    def judge(task):
        there = tokens[1][task] != 0
        return lambda y, p, _: {"loss": cross_entropy(y, p)[there].mean(), "accuracy": accuracy(y[there], p[there])}

    meta_model = classifier(model)
    report = evaluate_episodes(meta_model, (x, y), None, (0, 2), verbose=0)
    for task in range(TASKS):
        one = {name: values[task : task + 1] for name, values in x.items()}
        for name, values in alone(meta_model, (one, y[task : task + 1]), judge(task), (0, 2)).items():
            np.testing.assert_allclose(report.values[name][task], values[0], rtol=2e-5, err_msg=name)


@keras.saving.register_keras_serializable("tests")
class Counter(layers.Layer):
    """Counts the examples of every call that runs, and the calls in a variable."""

    seen = []

    def build(self, shape):
        self.calls = self.add_weight(name="calls", shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        zero = tf.py_function(lambda n: self.seen.append(int(n)) or 0.0, [tf.shape(x)[0]], tf.float32)
        return x + tf.ensure_shape(tf.stop_gradient(zero), ())


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_one_adaptation_pass_and_nothing_written(run_eagerly):
    # Ten support passes a task lead to the last station; each of the four stations has one query pass. One more query
    # pass, outside of any task, makes the state of the metrics. Below the first layer that adapts one pass would do.
    parts = [layers.Dense(5), Counter(), layers.BatchNormalization(), layers.Dense(WAYS)]
    model = keras.Sequential([keras.Input((5,)), *parts])
    meta_model = classifier(model, run_eagerly=run_eagerly)
    data = batch(inputs_of(), labels_of())
    before = [v.numpy() for v in meta_model.variables]
    evaluator = Evaluator(meta_model)
    for preparing in (1, 0):
        Counter.seen.clear()
        report = evaluator.report(data, tasks=None, verbose=0)
        assert report.steps == (0, 1, 5, 10)
        assert Counter.seen.count(SUPPORTS) == 10 * TASKS
        assert Counter.seen.count(QUERIES) == 4 * TASKS + preparing
        assert len(Counter.seen) == (10 + 4) * TASKS + preparing
    for variable, value in zip(meta_model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


def test_only_numbers_of_tasks_leave_the_graph(evaluator, monkeypatch):
    # What `predict` returns is all that is kept of a batch: one number of a task, or one for each number of steps.
    kept = []
    predict = evaluator._judge.predict
    monkeypatch.setattr(evaluator._judge, "predict", lambda *a, **b: kept.append(predict(*a, **b)) or kept[0])
    evaluator.report(dataset(), None, verbose=0)
    assert {values.shape for values in tf.nest.flatten(kept)} == {(12,), (12, 2)}


def test_an_evaluator_reads_the_weights_of_the_moment(evaluator):
    meta_model = evaluator.meta_model
    first = evaluator.report(dataset(), 12, verbose=0)
    function, weights = evaluator._judge.predict_function, meta_model.get_weights()
    try:
        meta_model.model.set_weights([2 * w + 0.1 for w in meta_model.model.get_weights()])
        meta_model.outer_step.assign(2)
        second = evaluator.report(dataset(), 12, verbose=0)
        rows = [(tf.reshape(x["query_x"], (-1, 5)), y.numpy().ravel()) for x, y in dataset()]
        expected = np.concatenate([cross_entropy(y, meta_model.model(x).numpy()) for x, y in rows])
    finally:
        meta_model.set_weights(weights)
    assert evaluator._judge.predict_function is function
    assert (first.protocol["outer_steps"], second.protocol["outer_steps"]) == (0, 2)
    np.testing.assert_allclose(second.of("loss", 0), expected.reshape(12, -1).mean(1), rtol=1e-5)
    assert np.abs(first.values["loss"] - second.values["loss"]).min() > 1e-4
    assert second.compare(first).of("loss").tasks == 12


def test_non_finite_tasks_are_counted():
    # One weight w = 1, x = 1, targets t; one step of 0.25 on (w - t)^2 leads halfway to t: query losses (w - t)^2 and a
    # quarter of it. A target of 1e30 squared is infinite in float32.
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    ones = np.ones((4, 1, 1), "float32")
    y = np.reshape([3, 1e30, 5, 0], (4, 1, 1)).astype("float32")
    meta_model = compiled(model, "mse", 0.25, metrics=["mae"])
    data = {"support_x": ones, "support_y": y, "query_x": ones}, y
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a task that is not finite from the start has not diverged
        report = evaluate_episodes(meta_model, data, None, (0, 1), verbose=0)
    np.testing.assert_allclose(report.of("loss", 0), [4, np.inf, 16, 1], rtol=1e-6)
    np.testing.assert_allclose(report.of("loss", 1), [1, np.inf, 4, 0.25], rtol=1e-6)
    summary = report.summary("mae")
    assert (summary.tasks, summary.non_finite, summary.diverged) == (3, 1, 0)
    assert summary.mean == pytest.approx((1 + 2 + 0.5) / 3)
    # A rate of 2 leads away: w - t grows to -3 times itself, the loss to 9 times; after two steps to 81 times.
    meta_model = compiled(model, "mse", 2.0)
    report = evaluate_episodes(meta_model, data, None, (1, 2), verbose=0)
    assert report.diverged(1).tolist() == [False, False, False, False]
    # Ten times 4 (the loss before of this task and of the median task), 16 and, for the last, the median's 4.
    assert report.diverged(2).tolist() == [True, False, True, True]
    assert report.steps == (1, 2)
    np.testing.assert_allclose(report.loss_before, [4, np.inf, 16, 1], rtol=1e-6)


@pytest.mark.parametrize("trained, warns", [(1, True), (2, False)])
def test_tasks_that_diverge_after_more_steps_than_were_trained(trained, warns):
    # As above with a rate of 2, targets 3, 5 and one infinite from the start: after two steps 81 times the loss.
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(2.0, trained))
    meta_model.compile("sgd", "mse")
    ones = np.ones((3, 1, 1), "float32")
    y = np.reshape([3, 1e30, 5], (3, 1, 1)).astype("float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate_episodes(meta_model, ({"support_x": ones, "support_y": y, "query_x": ones}, y), None, (1, 2), 0)
    said = [str(w.message) for w in caught if "diverged" in str(w.message)]
    assert len(said) == warns
    if warns:
        assert said[0].startswith("2 of 3 tasks diverged within 2 inner steps, and the model was trained with 1:")


def test_batches_are_of_no_account(evaluator):
    whole = evaluator.report(dataset(), None, verbose=0)
    assert (whole.tasks, whole.protocol["tasks"]) == (12, 12)
    assert whole.protocol["seed"] == "fixed(12, seed=0)"
    assert len(set(whole.episodes.tolist())) == 12
    for tasks in (3, 6):
        other = evaluator.report(dataset(tasks), None, verbose=0)
        np.testing.assert_array_equal(other.episodes, whole.episodes)
        np.testing.assert_allclose(other.values["loss"], whole.values["loss"], rtol=1e-5)
        assert whole.compare(other).of("accuracy").mean == 0
    # The first seven of a dataset; a last batch of another size; an endless one.
    for data in (dataset(), dataset().unbatch().batch(5), dataset().repeat()):
        some = evaluator.report(data, 7, verbose=0)
        np.testing.assert_array_equal(some.episodes, whole.episodes[:7])
        assert some.values["loss"].shape == (7, 2)
    assert evaluator.report(dataset().unbatch().batch(5), None, verbose=0).tasks == 12
    with pytest.raises(ValueError, match="gave 12 tasks, and tasks=15 .* batches of fewer tasks"):
        evaluator.report(dataset().unbatch().batch(5).repeat(), 15, verbose=0)  # of 5, 5 and 2 tasks
    for other in (evaluator.report(dataset(seed=1), None, verbose=0), some):
        with pytest.raises(ValueError, match="Only reports of the same episodes"):
            whole.compare(other)
    shuffled = dataset().unbatch().shuffle(12, seed=0).batch(4)
    with pytest.raises(ValueError, match="12 and 12 episodes, of which 12 are in both"):
        whole.compare(evaluator.report(shuffled, None, verbose=0))


class Batches(keras.utils.PyDataset):
    """Batches of arrays, without end if `count` is `None`."""

    def __init__(self, count):
        super().__init__()
        self.count = count
        self.batches = [tf.nest.map_structure(np.asarray, b) for b in dataset()]

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        return self.batches[index % 3]


def test_py_datasets(evaluator):
    expected = evaluator.report(dataset(), 12, verbose=0)
    for count, tasks in ((3, 12), (3, None), (None, 12)):
        report = evaluator.report(Batches(count), tasks, verbose=0)
        np.testing.assert_array_equal(report.episodes, expected.episodes)
        np.testing.assert_allclose(report.values["loss"], expected.values["loss"], rtol=1e-5)
        assert report.protocol["seed"].startswith("unknown")
    with pytest.raises(ValueError, match="never ends"):
        evaluator.report(Batches(None), None)
    with pytest.raises(ValueError, match="holds no batch"):
        evaluator.report(Batches(0))
    with pytest.raises(ValueError, match="gave 12 tasks, and tasks=13"):
        evaluator.report(Batches(3), 13)


def test_domains_of_a_mixture():
    sources = {"near": VECTORS, "far": VECTORS + 100}
    parts = {name: episodes.from_arrays(x, CLASSES, WAYS, 1, 2, tasks=4) for name, x in sources.items()}
    mixed = episodes.mixture(parts, seed=episodes.fixed(12))
    evaluator = Evaluator(classifier(run_eagerly=True), (0, 1))
    report = evaluator.report(mixed, None, verbose=0)
    ids = np.concatenate([x["domain"] for x, _ in mixed])
    assert report.domains == tuple(["near", "far"][i] for i in ids)
    of_each = report.by_domain()
    assert sum(part.tasks for part in of_each.values()) == 12
    np.testing.assert_array_equal(of_each["far"].of("loss"), report.of("loss")[ids == 1])
    # Others may name their domains as they like.
    x, y = batch(inputs_of(), labels_of())
    for domain, names in ((["a", "b", "a"], ("a", "b", "a")), ([0, 1, 0], ("domain 0", "domain 1", "domain 0"))):
        assert evaluator.report((x | {"domain": np.array(domain)}, y), None, verbose=0).domains == names


def test_progress_bar(capsys, evaluator):
    assert capsys.readouterr().out == ""
    evaluator.report(dataset(), 12, verbose=0)
    assert capsys.readouterr().out == ""
    evaluator.report(dataset(), 12, verbose=1)
    assert "3/3" in capsys.readouterr().out


def example():
    return {
        "images": tf.constant(random().integers(0, 255, (2, 3, 4, 4)), tf.uint8),
        "y": tf.constant([[0, 1, 2], [2, 1, 0]]),
        "x": tf.constant(random(1).normal(size=(2, 3, 5)), tf.float32),
        "weight": tf.constant([[1.0, 0.5, 0], [1, 1, 1]]),
        "text": tf.constant([["a", "b", "c"], ["d", "e", "f"]]),
    }


@pytest.mark.parametrize("part", example())
def test_fingerprints_tell_episodes_apart(part):
    parts = example()
    first, second = fingerprints(parts).numpy()
    assert first != second
    np.testing.assert_array_equal(fingerprints(example()), [first, second])
    np.testing.assert_array_equal(fingerprints(tf.nest.map_structure(lambda t: t[::-1], parts)), [second, first])
    # One element of the first task, by the least there is.
    array = parts[part].numpy()
    changed = array.copy()
    place = (0,) * (array.ndim - 1) + (1,)
    floating = array.dtype.kind == "f"
    changed[place] = b"B" if part == "text" else np.nextafter(array[place], 9) if floating else array[place] ^ 1
    # Two examples of the first task in each other's place.
    swapped = array.copy()
    swapped[0, [0, 1]] = array[0, [1, 0]]
    for other in (changed, swapped):
        found = fingerprints(parts | {part: tf.constant(other)}).numpy()
        assert found[0] != first
        assert found[1] == second
    assert fingerprints({k: v for k, v in parts.items() if k != part}).numpy()[0] != first


def test_fingerprints_of_the_same_numbers():
    parts = example()
    np.testing.assert_array_equal(fingerprints(parts["x"]), fingerprints(tf.cast(parts["x"], tf.float64)))
    np.testing.assert_array_equal(fingerprints(parts["y"]), fingerprints(tf.cast(parts["y"], tf.uint8)))
    np.testing.assert_array_equal(fingerprints(parts["x"], None), fingerprints(parts["x"]))
    assert fingerprints(tf.zeros((0, 3))).shape == (0,)
    many = tf.function(fingerprints)(tf.range(10_000)[:, None], tf.zeros((10_000, 2)))
    assert len(set(many.numpy().tolist())) == 10_000


@pytest.mark.parametrize("what", ["support_x", "support_y", "query_x", "support_weight", "y", "sample_weight"])
def test_reports_know_all_of_an_episode(evaluator, what):
    x, y = batch(inputs_of(), labels_of())
    x["support_weight"] = np.ones((TASKS, SUPPORTS), "float32")
    parts = {**x, "y": y, "sample_weight": np.ones((TASKS, QUERIES), "float32")}

    def report(parts):
        x = {name: value for name, value in parts.items() if name not in ("y", "sample_weight")}
        return evaluator.report((x, parts["y"], parts["sample_weight"]), None, verbose=0)

    value = parts[what].copy()
    place = (1,) * value.ndim
    value[place] = (value[place] + 1) % WAYS if what.endswith("y") else value[place] * 0.5
    first, second = report(parts), report(parts | {what: value})
    assert (first.episodes == second.episodes).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="of which 2 are in both"):
        first.compare(second)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tasks": 1}, "at least 2, or None. Received: tasks=1"),
        ({"tasks": True}, "Received: tasks=True"),
        ({"tasks": 4.0}, "Received: tasks=4.0"),
        ({"tasks": 13}, "gave 12 tasks, and tasks=13 were asked for"),
        ({"steps": ()}, r"`steps` must be .* Received: steps=\(\)"),
        ({"steps": -1}, "Received: steps=-1"),
        ({"steps": (0, 1.5)}, "Received: steps=.0, 1.5."),
        ({"steps": (True,)}, "Received: steps="),
        ({"steps": "all"}, "Received: steps='all'"),
        ({"episodes": dataset().repeat(), "tasks": None}, "never ends"),
        ({"episodes": dataset().take(0)}, "holds no batch"),
        ({"episodes": dataset().map(lambda x, y: x), "tasks": 12}, "no `query_y`"),
        ({"episodes": dataset().map(lambda x, y: (y, y)), "tasks": 12}, "x must be a dict .* Received: a "),
        ({"episodes": 3}, "must be a `tf.data.Dataset` .* Received: int"),
        ({"episodes": (batch(inputs_of(), labels_of())[0],)}, "no `query_y`"),
        ({"episodes": batch([x * np.nan for x in inputs_of()], labels_of())}, "NaN"),
        ({"episodes": batch(inputs_of(), labels_of(ways=9))}, r"Labels must be in \[0, 3\)"),
        ({"meta_model": dense()}, "must be a `MetaModel`. Received: Sequential"),
        ({"meta_model": keras_maml.MetaModel(dense())}, "compile"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_bad_input(arguments, message):
    usual = {"meta_model": classifier(), "episodes": dataset(), "tasks": 12, "steps": (0,), "verbose": 0}
    with pytest.raises(ValueError, match=message):
        evaluate_episodes(**usual | arguments)


def test_numbers_of_steps():
    evaluator = Evaluator(classifier(), [np.int64(2), 0, 2])
    assert evaluator.steps == (0, 2)
    assert Evaluator(classifier(), 3).steps == (3,)
    assert Evaluator(classifier(), range(3)).steps == (0, 1, 2)


def test_a_metric_that_is_no_number():
    metric = keras.metrics.F1Score(name="f1")
    meta_model = compiled(dense(), keras.losses.CategoricalCrossentropy(from_logits=True), metrics=[metric])
    one_hot = [np.eye(WAYS, dtype="float32")[labels] for labels in labels_of()]
    with pytest.raises(ValueError, match=r"Metric 'f1' has a value of shape \(3,\)"):
        evaluate_episodes(meta_model, batch(inputs_of(), one_hot), None, (0,), verbose=0)


def test_no_metric_and_a_model_that_is_not_built():
    model = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(1)])
    targets = [random(n).normal(size=(TASKS, n, 1)).astype("float32") for n in (SUPPORTS, QUERIES)]
    report = evaluate_episodes(compiled(model, "mse"), batch(inputs_of(), targets), None, (0, 1), verbose=0)
    assert report.metrics == ("loss",)
    assert report.directions == {"loss": "down"}
