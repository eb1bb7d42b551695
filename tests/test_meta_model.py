"""The Keras shell: models, data, training, logs, callbacks, precision and files, with tiny models on random episodes.

What should come out is taken from another route wherever there is one: the loss of `evaluate` from the predictions of
the plain Keras models that `adapt` returns, metrics from NumPy, a training step from `meta_gradients` and an optimizer.
"""

import csv
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.learning_rules import SGD, LayerwiseSGD
from keras_maml.meta_gradients import FirstOrder, Unrolled

TASKS, SUPPORTS, QUERIES, FEATURES, WAYS = 4, 3, 5, 3, 3
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def episodes(tasks=TASKS, seed=0, dtype="float32"):
    """Classification episodes: `x` with float inputs, `y` with class numbers."""
    generator = np.random.default_rng(seed)
    x = {
        "support_x": generator.normal(size=(tasks, SUPPORTS, FEATURES)).astype(dtype),
        "support_y": generator.integers(0, WAYS, (tasks, SUPPORTS)).astype("int32"),
        "query_x": generator.normal(size=(tasks, QUERIES, FEATURES)).astype(dtype),
    }
    return x, generator.integers(0, WAYS, (tasks, QUERIES)).astype("int32")


def weights_with_padding(tasks=TASKS):
    """`support_weight` and `sample_weight` in which every task has a padded example and a half one."""
    support, query = np.ones((tasks, SUPPORTS), "float32"), np.ones((tasks, QUERIES), "float32")
    support[:, -1], support[:, 0] = 0, 0.5
    query[:, 2], query[:, 1] = 0, 0.5
    query[0, 3:] = 0
    return support, query


def dense(dtype="float32", **kwargs):
    """Keras casts what comes to the dtype of the `Input`, whatever the policy."""
    inputs = keras.Input((FEATURES,), dtype=dtype)
    return keras.Sequential([inputs, keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(WAYS, **kwargs)])


def compiled(model=None, algorithm=None, optimizer="sgd", loss=LOGITS, task_mapping="parallel", **kwargs):
    own = {name: kwargs.pop(name) for name in ("inner_loss", "log_before") if name in kwargs}
    algorithm = algorithm or keras_maml.MAML(0.1, 1)
    meta_model = keras_maml.MetaModel(model or dense(), algorithm, task_mapping, **own)
    meta_model.compile(optimizer, loss, **kwargs)
    return meta_model


def task(structure, number):
    return tf.nest.map_structure(lambda values: values[number], structure)


def weights_of(model):
    return [v.numpy() for v in model.variables]


def assert_all_close(actual, expected, **tolerance):
    for a, e in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, e, **tolerance)


# ------------------------------------------------------------------------------------------------------------- models


def sequential_unbuilt():
    return keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(WAYS)])


@keras.saving.register_keras_serializable("test_meta_model")
class Subclassed(keras.Model):
    """Has no `training` argument, and is built by its first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(4, activation="tanh")
        self.head = keras.layers.Dense(WAYS)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def shared_frozen_nested_regularised():
    inner = keras.Sequential([keras.layers.Dense(FEATURES, "tanh", name="d", kernel_regularizer="l2")], name="inner")
    shared = keras.layers.Dense(FEATURES, activation="tanh", name="shared")
    frozen = keras.layers.Dense(FEATURES, name="frozen", trainable=False)
    inputs = keras.Input((FEATURES,))
    outputs = keras.layers.Dense(WAYS, name="d", bias_regularizer="l2")(inner(shared(frozen(shared(inner(inputs))))))
    return keras.Model(inputs, outputs)


def two_inputs(container):
    numbers, words = keras.Input((FEATURES,), name="numbers"), keras.Input((2,), dtype="int32", name="words")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(7, 2)(words))
    outputs = keras.layers.Dense(WAYS)(keras.layers.Concatenate()([numbers, embedded]))
    return keras.Model(container(numbers, words), outputs)


def dictionary(numbers, words):
    return {"numbers": numbers, "words": words}


def sequence(numbers, words):
    return [numbers, words]


def masked_words():
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(7, 4, mask_zero=True),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(WAYS),
        ]
    )


def words(examples, seed=1):
    """Two words an example, of which the second may be padding."""
    return np.random.default_rng(seed).integers([1, 0], 7, (TASKS, examples, 2)).astype("int32")


def with_inputs(container):
    x, y = episodes()
    numbers = {name: x[name] for name in ("support_x", "query_x")}
    x["support_x"] = container(numbers["support_x"], words(SUPPORTS))
    x["query_x"] = container(numbers["query_x"], words(QUERIES, seed=2))
    return x, y


MODELS = {
    "sequential": (dense, episodes),
    "sequential, not built": (sequential_unbuilt, episodes),
    "subclassed": (Subclassed, episodes),
    "shared, frozen, nested, regularised": (shared_frozen_nested_regularised, episodes),
    "two inputs in a dict": (lambda: two_inputs(dictionary), lambda: with_inputs(dictionary)),
    "two inputs in a list": (lambda: two_inputs(sequence), lambda: with_inputs(sequence)),
    "integers, masked, dropout": (masked_words, lambda: with_inputs(lambda numbers, words: words)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    make, data = MODELS[name]
    model, (x, y) = make(), data()
    meta_model = compiled(model, keras_maml.MAML(0.1, 2), keras.optimizers.SGD(0.1), metrics=["accuracy"])
    if built := model.built:
        before = {v.path: v.numpy() for v in model.variables}
    history = meta_model.fit(x, y, batch_size=2, epochs=2, verbose=0).history
    assert history.keys() == {"loss", "accuracy"} and np.all(np.isfinite(history["loss"]))
    if built:
        for variable in model.weights:
            assert variable.trainable != np.array_equal(before[variable.path], variable.numpy()), variable.path
    # The same by another route: plain Keras models, one for each task, regularised at their own weights.
    learners = [meta_model.adapt(task(x["support_x"], t), x["support_y"][t]) for t in range(TASKS)]
    predictions = np.stack([learner(task(x["query_x"], t)) for t, learner in enumerate(learners)])
    losses = [LOGITS(y[t], predictions[t]) + sum(learner.losses) for t, learner in enumerate(learners)]
    results = meta_model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    np.testing.assert_allclose(meta_model.predict(x, batch_size=2, verbose=0), predictions, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(results["accuracy"], np.mean(predictions.argmax(-1) == y), rtol=1e-6)


def test_one_model_is_built_by_whatever_comes_first():
    x, y = episodes()
    for first in (
        lambda m: m(x),
        lambda m: m.adapt(x["support_x"][0], x["support_y"][0]),
        lambda m: m.meta_gradients(x, y),
        lambda m: m.predict_on_batch(x),
        lambda m: m.train_on_batch(x, y),
        lambda m: m.test_on_batch(x, y),
    ):
        meta_model = compiled(sequential_unbuilt(), keras_maml.MetaSGD(0.1, 1), run_eagerly=True)
        first(meta_model)
        assert meta_model.model.built and len(meta_model.trainable_variables) == 8


def test_float64():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = dense("float64", kernel_regularizer="l2")
    finally:
        keras.config.set_dtype_policy(policy)
    x, y = episodes(dtype="float64")
    meta_model = compiled(model, keras_maml.MetaSGD(0.1, 1))
    loss, predictions, gradients = tf.function(meta_model.meta_gradients)(x, y)
    assert {t.dtype for t in (loss, predictions, *gradients)} == {tf.float64}
    # float32 anywhere on the way would show at 1e-7.
    learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
    np.testing.assert_allclose(meta_model(x), predictions, rtol=1e-12)
    np.testing.assert_allclose(learner(x["query_x"][0]), predictions[0], rtol=1e-12)
    point = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
    direction = [tf.ones_like(v) for v in point]
    moved = [[v + sign * 1e-6 * d for v, d in zip(point, direction, strict=True)] for sign in (1, -1)]
    up, down = (meta_model.meta_gradients(x, y, variables=values)[0] for values in moved)
    slope = sum(tf.reduce_sum(g * d) for g, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose((up - down) / 2e-6, slope, rtol=1e-7)
    meta_model.fit(x, y, verbose=0)


# ---------------------------------------------------------------------------------------------------------------- data


class Batches(keras.utils.PyDataset):
    """Batches of different numbers of tasks."""

    def __init__(self, sizes, **kwargs):
        super().__init__(**kwargs)
        self.ends = np.cumsum(sizes)
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        chosen = slice(self.ends[index] - self.sizes[index], self.ends[index])
        x, y = episodes()
        return task(x, chosen), y[chosen]


def test_arrays_datasets_and_generators_give_the_same():
    x, y = episodes()
    meta_model = compiled(metrics=["accuracy"], optimizer=keras.optimizers.SGD(0.5))
    start = meta_model.get_weights()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    sources = {
        "arrays": {"x": x, "y": y, "batch_size": 2, "shuffle": False},
        "tensors": {"x": tf.nest.map_structure(tf.constant, x), "y": tf.constant(y), "batch_size": 2, "shuffle": False},
        "dataset": {"x": dataset, "validation_data": dataset},
        "endless dataset": {"x": dataset.repeat(), "steps_per_epoch": 2},
        "PyDataset": {"x": Batches((2, 2)), "shuffle": False},
        "generator": {"x": (batch for batch in dataset), "steps_per_epoch": 2},
    }
    results = {}
    for name, source in sources.items():
        meta_model.set_weights(start)
        history = meta_model.fit(**source, verbose=0).history
        results[name] = history["loss"], history["accuracy"], meta_model.get_weights()[1:]
    for name, result in results.items():
        assert_all_close(result, results["arrays"], rtol=1e-6, err_msg=name)


def test_batches_of_different_numbers_of_tasks():
    # The mean over tasks, not over batches.
    x, y = episodes()
    meta_model = compiled()
    whole = meta_model.evaluate(x, y, verbose=0)
    batches = Batches((1, 3))
    np.testing.assert_allclose(meta_model.evaluate(batches, verbose=0), whole, rtol=1e-6)
    np.testing.assert_allclose(meta_model.predict(batches, verbose=0), meta_model(x), rtol=1e-5, atol=1e-6)
    meta_model.fit(batches, validation_data=batches, verbose=0)


def test_validation_split():
    x, y = episodes()
    meta_model = compiled(optimizer=keras.optimizers.SGD(0.0))
    history = meta_model.fit(x, y, validation_split=0.5, verbose=0).history
    expected = meta_model.evaluate(task(x, slice(2, 4)), y[2:], verbose=0)
    np.testing.assert_allclose(history["val_loss"], [expected], rtol=1e-6)


def test_no_warnings_in_ordinary_use():
    x, y = episodes()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # hidden by default: Keras's own with NumPy 2
        for model in (dense(), sequential_unbuilt(), Subclassed()):
            meta_model = compiled(model, optimizer="adam", metrics=["accuracy"], run_eagerly=True)
            meta_model.fit(dataset, validation_data=dataset, verbose=0)
            meta_model.fit(x, y, validation_data=(x, y), verbose=0)
            meta_model.fit(Batches((2, 2)), verbose=0)
            meta_model.summary(print_fn=lambda line: None)
            assert int(meta_model.optimizer.iterations) == int(meta_model.outer_step) > 0


# ------------------------------------------------------------------------------------------------------------ training


def test_ways_to_run_agree():
    x, y = episodes()
    x["support_weight"], sample_weight = weights_with_padding()
    results = []
    model = dense()
    start = model.get_weights()
    for how in ({}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}):
        model.set_weights(start)
        meta_model = compiled(
            model, keras_maml.MetaSGD(0.1, 2), keras.optimizers.SGD(0.5), log_before=True, metrics=["accuracy"],
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")], **how,
        )
        history = meta_model.fit(x, y, sample_weight=sample_weight, batch_size=2, shuffle=False, verbose=0).history
        assert set(history) == {
            *("loss", "accuracy", "weighted"), *("loss_before", "accuracy_before", "weighted_before")
        }
        results.append((history, weights_of(meta_model)))
    for result in results[1:]:
        assert_all_close(result, results[0], rtol=1e-4, atol=1e-6)


def test_a_training_step_is_the_meta_gradient_and_an_optimizer():
    x, y = episodes()
    support_weight, sample_weight = weights_with_padding()
    x["support_weight"] = support_weight
    meta_model = compiled(dense(), keras_maml.MetaSGD(0.1, 2), keras.optimizers.Adam(0.1), metrics=["accuracy"])
    start = meta_model.get_weights()
    loss, predictions, gradients = tf.function(meta_model.meta_gradients)(x, y, sample_weight)
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.apply(gradients, meta_model.trainable_variables)
    expected = weights_of(meta_model)
    assert int(meta_model.outer_step) == 1
    meta_model.set_weights(start)
    logs = meta_model.train_on_batch(x, y, sample_weight, return_dict=True)
    assert_all_close(weights_of(meta_model), expected, rtol=1e-5, atol=1e-6)
    kept = sample_weight > 0
    accuracy = np.mean((np.argmax(predictions, -1) == y)[kept])
    assert_all_close([logs["loss"], logs["accuracy"]], [loss, accuracy], rtol=1e-6)


@pytest.mark.parametrize("algorithm", [keras_maml.MAML(0.1, 1), keras_maml.IMAML(0.1, 1), keras_maml.Reptile(0.1, 1)])
def test_a_wholly_frozen_model_is_evaluated_and_not_trained(algorithm):
    x, y = episodes()
    support_weight, sample_weight = weights_with_padding()
    model = dense()
    model.trainable = False
    meta_model = compiled(model, algorithm)
    expected = model(x["query_x"].reshape(-1, FEATURES)).numpy().reshape(TASKS, QUERIES, WAYS)
    weighted = {**x, "support_weight": support_weight}
    for episode in (x, weighted):
        np.testing.assert_allclose(meta_model.predict(episode, verbose=0), expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=f"nothing to meta-learn: model '{model.name}' has no trainable weights"):
            meta_model.fit(episode, y, sample_weight=sample_weight, verbose=0)


def test_on_batch():
    x, y = episodes()
    meta_model = compiled(metrics=["accuracy"])
    expected = meta_model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(meta_model.test_on_batch(x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(meta_model.predict_on_batch(x), meta_model(x), rtol=1e-5, atol=1e-6)


def test_evaluation_changes_nothing():
    x, y = episodes()
    meta_model = compiled(masked_words(), metrics=["accuracy"])
    x, y = with_inputs(lambda numbers, words: words)
    before = weights_of(meta_model)
    meta_model.evaluate(x, y, verbose=0)
    meta_model.predict(x, verbose=0)
    meta_model.adapt(x["support_x"][0], x["support_y"][0])
    assert_all_close(weights_of(meta_model), before, rtol=0)


def test_inner_loss():
    # Weight 3, inner loss (p - 1)^2 with gradient 4: phi = 3 - 0.1 * 4 = 2.6. Outer loss |p - 0|: 2.6, gradient
    # dphi/dw = 1 - 0.2.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    x = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
    meta_model = compiled(model, loss="mae", inner_loss="mse")
    loss, _, gradients = meta_model.meta_gradients(x, np.zeros((1, 1, 1), "float32"))
    np.testing.assert_allclose([loss, gradients[0][0, 0]], [2.6, 0.8], rtol=1e-6)


def test_inner_loss_is_enough_to_predict():
    x, _ = episodes()
    meta_model = keras_maml.MetaModel(dense(), inner_loss=LOGITS)
    np.testing.assert_allclose(meta_model.predict(x, verbose=0), meta_model(x), rtol=1e-5, atol=1e-6)
    meta_model.adapt(x["support_x"][0], x["support_y"][0])


# ---------------------------------------------------------------------------------------------------- metrics and logs


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}], ids=["graph", "jit"])
def test_metrics_see_all_queries_but_those_of_weight_0(how):
    x, labels = episodes()
    one_hot = np.eye(WAYS, dtype="float32")
    x["support_y"], y = one_hot[x["support_y"]], one_hot[labels]
    _, weight = weights_with_padding()
    meta_model = compiled(
        dense(activation="softmax"), loss="categorical_crossentropy", log_before=True,
        metrics=["accuracy", keras.metrics.F1Score(), keras.metrics.R2Score(), keras.metrics.AUC(multi_label=True)],
        weighted_metrics=[keras.metrics.CategoricalAccuracy(name="weighted")], **how,
    )
    results = meta_model.evaluate(x, y, sample_weight=weight, batch_size=2, verbose=0, return_dict=True)
    predictions = meta_model.predict(x, verbose=0)
    losses = -np.sum(y * np.log(predictions), -1)
    np.testing.assert_allclose(results["loss"], np.mean(np.sum(weight * losses, 1) / np.sum(weight, 1)), rtol=1e-5)
    hits = (predictions.argmax(-1) == labels)[weight > 0]
    np.testing.assert_allclose(results["accuracy"], np.mean(hits), rtol=1e-6)
    np.testing.assert_allclose(results["weighted"], np.average(hits, weights=weight[weight > 0]), rtol=1e-6)
    truth, scores = y[weight > 0], predictions[weight > 0]
    chosen = one_hot[scores.argmax(-1)]
    f1 = 2 * np.sum(truth * chosen, 0) / (np.sum(truth, 0) + np.sum(chosen, 0))
    np.testing.assert_allclose(results["f1_score"], f1, rtol=1e-5)
    r2 = 1 - np.sum((truth - scores) ** 2, 0) / np.sum((truth - truth.mean(0)) ** 2, 0)
    np.testing.assert_allclose(results["r2_score"], np.mean(r2), rtol=1e-4)
    auc = keras.metrics.AUC(multi_label=True)
    auc.update_state(truth, scores)
    (name,) = (name for name in results if name.startswith("auc") and not name.endswith("before"))
    np.testing.assert_allclose(results[name], auc.result(), rtol=1e-5)
    before = meta_model.model(x["query_x"].reshape(-1, FEATURES)).numpy().reshape(predictions.shape)
    hits_before = (before.argmax(-1) == labels)[weight > 0]
    np.testing.assert_allclose(results["accuracy_before"], np.mean(hits_before), rtol=1e-6)


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=["graph", "jit", "eager"])
def test_outputs_of_masked_sequences(how):
    # A mask (examples, steps) and weights (examples,) together: what counts is their product.
    length = 4
    generator = np.random.default_rng(0)

    def padded(examples):
        lengths = generator.integers(1, length + 1, (2, examples, 1))
        return np.where(np.arange(length) < lengths, generator.integers(1, 7, (2, examples, length)), 0).astype("int32")

    x = {"support_x": padded(SUPPORTS), "query_x": padded(QUERIES)}
    x["support_y"] = generator.integers(0, WAYS, x["support_x"].shape).astype("int32")
    y = generator.integers(0, WAYS, x["query_x"].shape).astype("int32")
    weight = weights_with_padding(2)[1]
    model = keras.Sequential(
        [keras.Input((None,), dtype="int32"), keras.layers.Embedding(7, 4, mask_zero=True), keras.layers.Dense(WAYS)]
    )
    meta_model = compiled(
        model, log_before=True, metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")], **how,
    )
    results = meta_model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    predictions = meta_model.predict(x, verbose=0)
    factor = weight[..., np.newaxis] * (x["query_x"] != 0)
    hits = predictions.argmax(-1) == y
    logarithms = predictions - np.log(np.sum(np.exp(predictions), -1, keepdims=True))
    losses = -np.take_along_axis(logarithms, y[..., np.newaxis], -1)[..., 0]
    loss = np.mean(np.sum(losses * factor, (1, 2)) / np.sum(factor, (1, 2)))
    expected = {"loss": loss, "accuracy": np.mean(hits[factor > 0]), "weighted": np.average(hits, weights=factor)}
    assert_all_close([results[name] for name in expected], list(expected.values()), rtol=1e-5)


def test_log_before_is_what_no_steps_give():
    x, y = episodes()
    x["support_weight"], weight = weights_with_padding()
    model = dense()
    meta_model = compiled(model, log_before=True, metrics=["accuracy"], optimizer=keras.optimizers.SGD(0.0))
    unadapted = compiled(model, keras_maml.MAML(0.1, 1, evaluation_steps=0), metrics=["accuracy"])
    expected = unadapted.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    history = meta_model.fit(x, y, sample_weight=weight, validation_data=(x, y, weight), verbose=0).history
    evaluated = meta_model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    for name, value in expected.items():
        for logged in (history[f"{name}_before"][0], history[f"val_{name}_before"][0], evaluated[f"{name}_before"]):
            np.testing.assert_allclose(logged, value, rtol=1e-6)
    assert evaluated["loss"] != evaluated["loss_before"]


def two_outputs(container):
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    kind, size = keras.layers.Dense(WAYS, name="kind")(hidden), keras.layers.Dense(1, name="size")(hidden)
    return keras.Model(inputs, container(kind, size))


def tuple_of(kind, size):
    return kind, size


def dict_of(kind, size):
    return {"kind": kind, "size": size}


@pytest.mark.parametrize("container", [dict_of, tuple_of])
def test_several_outputs(container):
    x, kinds = episodes()
    generator = np.random.default_rng(1)
    sizes = generator.normal(size=(TASKS, QUERIES, 1)).astype("float32")
    x["support_y"] = container(x["support_y"], generator.normal(size=(TASKS, SUPPORTS, 1)).astype("float32"))
    y = container(kinds, sizes)
    _, weight = weights_with_padding()
    meta_model = compiled(
        two_outputs(container), loss=container(LOGITS, "mse"), loss_weights=container(1.0, 0.5), log_before=True,
        metrics=container(["accuracy"], ["mae"]), run_eagerly=True,
    )
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(2)
    meta_model.fit(dataset, verbose=0)
    results = meta_model.evaluate(dataset, verbose=0, return_dict=True)
    predictions = meta_model.predict(x, verbose=0)
    kind, size = predictions.values() if isinstance(predictions, dict) else predictions
    logarithms = kind - np.log(np.sum(np.exp(kind), -1, keepdims=True))
    losses = -np.take_along_axis(logarithms, kinds[..., np.newaxis], -1)[..., 0]
    losses = losses + 0.5 * np.square(size - sizes)[..., 0]
    np.testing.assert_allclose(results["loss"], np.mean(np.sum(weight * losses, 1) / np.sum(weight, 1)), rtol=1e-5)
    prefixes = ("kind_", "size_") if container is dict_of else ("", "")
    accuracy = np.mean((kind.argmax(-1) == kinds)[weight > 0])
    np.testing.assert_allclose(results[f"{prefixes[0]}accuracy"], accuracy, rtol=1e-6)
    np.testing.assert_allclose(results[f"{prefixes[1]}mae"], np.mean(np.abs(size - sizes)[weight > 0]), rtol=1e-5)
    assert f"{prefixes[0]}accuracy_before" in results
    learner = meta_model.adapt(x["support_x"][0], task(x["support_y"], 0))
    assert_all_close(learner(x["query_x"][0]), task(predictions, 0), rtol=1e-4, atol=1e-5)


def test_several_outputs_that_do_not_fit_together_are_refused():
    x, y = episodes()
    x["support_y"], y = {"kind": x["support_y"], "size": x["support_y"]}, {"kind": y, "size": y}
    meta_model = compiled(two_outputs(dict_of), loss="mse")
    with pytest.raises(ValueError, match="must share one structure.*loss=mean_squared_error.*'kind'"):
        meta_model.meta_gradients(x, y)
    with pytest.raises(ValueError, match=r"Keras takes no `sample_weight` .* Pass `tf.data.Dataset.from_tensor_slices"):
        meta_model.fit(x, y, sample_weight=np.ones((TASKS, QUERIES)))


# ----------------------------------------------------------------------------------------------------------- callbacks


def test_checkpoints_hold_the_best_model(tmp_path):
    x, y = episodes()
    other = episodes(seed=1)
    meta_model = compiled(algorithm=keras_maml.MetaSGD(0.1, 1), optimizer=keras.optimizers.Adam(0.5))
    whole, weights = tmp_path / "best.keras", tmp_path / "{epoch}.weights.h5"
    history = meta_model.fit(
        x, y, epochs=3, validation_data=other, verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(whole, monitor="val_loss", save_best_only=True),
            keras.callbacks.ModelCheckpoint(weights, save_weights_only=True),
        ],
    ).history
    best = keras.models.load_model(whole)
    np.testing.assert_allclose(best.evaluate(*other, verbose=0), min(history["val_loss"]), rtol=1e-6)
    meta_model.load_weights(tmp_path / "2.weights.h5")
    np.testing.assert_allclose(meta_model.evaluate(*other, verbose=0), history["val_loss"][1], rtol=1e-6)


def test_callbacks_that_watch_the_loss(tmp_path):
    x, y = episodes()
    meta_model = compiled(optimizer=keras.optimizers.SGD(0.125), log_before=True, metrics=["accuracy"])
    history = meta_model.fit(
        x, y, epochs=9, validation_data=(x, y), verbose=0,
        callbacks=[
            # No improvement is ever 100: the rate halves after every epoch but the first, training stops after 3.
            keras.callbacks.ReduceLROnPlateau("loss_before", factor=0.5, patience=1, min_delta=100, mode="min"),
            keras.callbacks.EarlyStopping(monitor="val_accuracy", mode="max", patience=2, min_delta=100),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.TensorBoard(tmp_path / "board", histogram_freq=1),
        ],
    ).history
    assert history["learning_rate"] == [0.125, 0.125, 0.0625]
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy_before"]) for row in rows] == history["val_accuracy_before"]
    assert list((tmp_path / "board" / "train").iterdir()) and list((tmp_path / "board" / "validation").iterdir())


def test_learning_rate_scheduler():
    x, y = episodes()
    meta_model = compiled(optimizer=keras.optimizers.SGD(0.5), run_eagerly=True)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = meta_model.fit(x, y, epochs=2, verbose=0, callbacks=[schedule]).history
    assert history["learning_rate"] == [0.25, 0.125]


def test_swapped_averages():
    # Averages that keep all of what they were stay at the weights of the first step, and those are judged.
    x, y = episodes()
    model = dense()
    start = model.get_weights()
    meta_model = compiled(model, optimizer=keras.optimizers.SGD(0.5))
    meta_model.train_on_batch(x, y)
    first = meta_model.evaluate(x, y, verbose=0)
    model.set_weights(start)
    meta_model = compiled(model, optimizer=keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=1.0))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = meta_model.fit(x, y, epochs=3, validation_data=(x, y), verbose=0, callbacks=[swap]).history
    np.testing.assert_allclose(history["val_loss"], [first] * 3, rtol=1e-6)


def test_a_task_with_nan_shows_in_the_loss_and_stops_training():
    x, y = episodes()
    x["query_x"][2, 0, 0] = np.nan  # in the second batch, whose values a compiled step cannot look at
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    meta_model = compiled()
    history = meta_model.fit(dataset, epochs=3, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()]).history
    assert len(history["loss"]) == 1 and np.isnan(history["loss"][0])


def test_backup_of_a_model_that_is_not_built(tmp_path):
    x, y = episodes()
    meta_model = compiled(sequential_unbuilt(), run_eagerly=True)
    meta_model.fit(x, y, epochs=2, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    assert meta_model.model.built and int(meta_model.outer_step) == 2


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    x, y = episodes()
    reference = dense(kernel_regularizer="l2")
    _, _, expected = compiled(reference, keras_maml.MetaSGD(0.1, 2)).meta_gradients(x, y)
    keras.config.set_dtype_policy(policy)
    try:
        model = dense(kernel_regularizer="l2")
        model.set_weights(reference.get_weights())
        start = model.get_weights()
        results = []
        for optimizer in (keras.optimizers.SGD(0.5), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5))):
            model.set_weights(start)
            meta_model = compiled(model, keras_maml.MetaSGD(0.1, 2), optimizer, metrics=["accuracy"])
            assert meta_model.dtype_policy.name == "float32" and meta_model.model.compute_dtype == policy[6:]
            _, _, gradients = tf.function(meta_model.meta_gradients)(x, y)
            history = meta_model.fit(x, y, epochs=2, verbose=0).history
            assert np.all(np.isfinite(history["loss"]))
            results.append((history, weights_of(meta_model.model)))
            assert meta_model.predict(x, verbose=0).shape == (TASKS, QUERIES, WAYS)
            assert {v.dtype for v in meta_model.trainable_variables} == {"float32"}
    finally:
        keras.config.set_dtype_policy("float32")
    # 11 bits of a float16, 8 of a bfloat16: relative rounding of 5e-4 and 4e-3 in each of some ten operations.
    actual, expected = (np.concatenate([np.ravel(g) for g in part]) for part in (gradients, expected))
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < (5e-3 if policy == "mixed_float16" else 4e-2)
    assert_all_close(results[1], results[0], rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- files


ALGORITHMS = {
    "MAML": keras_maml.MAML(0.1, 1, evaluation_steps=2, clipnorm=1.0),
    "Reptile": keras_maml.Reptile(0.1, 1, data="episode"),
    "MetaSGD": keras_maml.MetaSGD(0.1, 1),
    "ANIL": keras_maml.ANIL(0.1, 1),
    "BOIL": keras_maml.BOIL(0.1, 1, head="head"),
    "IMAML": keras_maml.IMAML(0.1, 2, strength=3.0),
    "own": keras_maml.Algorithm(LayerwiseSGD(0.1), FirstOrder(), 2, 3, layers=keras_maml.exclude("hidden")),
}


def configuration(meta_model):
    """As a file holds it: without the difference between lists and tuples."""
    return json.loads(json.dumps(meta_model.get_config()))


def named():
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(4, activation="tanh", name="hidden"),
            keras.layers.Dense(WAYS, name="head"),
        ]
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_save_and_load(name, tmp_path):
    x, y = episodes()
    mapping = keras_maml.task_mapping.Parallel(parallel_tasks=3)
    meta_model = compiled(
        named(), ALGORITHMS[name], "adam", task_mapping=mapping, metrics=["accuracy"], inner_loss=LOGITS,
        log_before=True, run_eagerly=True,
    )
    meta_model.fit(x, y, verbose=0)
    meta_model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), meta_model.predict(x, verbose=0))
    assert configuration(loaded) == configuration(meta_model)
    assert_all_close(weights_of(loaded), weights_of(meta_model), rtol=0)
    assert_all_close(weights_of(loaded.optimizer), weights_of(meta_model.optimizer), rtol=0)
    assert int(loaded.outer_step) == 1
    logs = [m.fit(x, y, verbose=0, shuffle=False).history for m in (loaded, meta_model)]
    assert logs[0] == logs[1] and "accuracy_before" in logs[0]
    assert_all_close(weights_of(loaded), weights_of(meta_model), rtol=0)
    # The weights alone, into a model of the same configuration.
    meta_model.save_weights(tmp_path / "model.weights.h5")
    clone = keras.models.clone_model(meta_model)
    assert isinstance(clone, keras_maml.MetaModel)
    assert not {id(v) for v in clone.variables} & {id(v) for v in meta_model.variables}
    clone.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(clone.predict(x, verbose=0), meta_model.predict(x, verbose=0))


@pytest.mark.parametrize("make", [sequential_unbuilt, Subclassed])
def test_save_and_load_of_models_built_by_data(make, tmp_path):
    x, y = episodes()
    meta_model = compiled(make(), keras_maml.MetaSGD(0.1, 1), "adam", run_eagerly=True)
    meta_model.fit(x, y, verbose=0)
    meta_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), meta_model.predict(x, verbose=0))
    assert_all_close(weights_of(loaded.optimizer), weights_of(meta_model.optimizer), rtol=0)


def test_configuration_of_functions_and_layer_objects():
    model = named()
    algorithm = keras_maml.Algorithm(SGD(0.1), Unrolled(), 1, layers=[model.layers[1]])
    meta_model = keras_maml.MetaModel(model, algorithm, inner_loss={"a": "mse"}, name="learner")
    again = keras_maml.MetaModel.from_config(meta_model.get_config())
    assert configuration(again) == configuration(meta_model) and again.name == "learner"
    assert again.algorithm.layers == ("head",) and again.mask == meta_model.mask == (False, False, True, True)


def test_summary_counts_every_weight_once():
    # 3 * 4 + 4 + 4 * 3 + 3 = 31 weights of the model, a rate for each, and the step counter.
    meta_model = compiled(named(), keras_maml.MetaSGD(0.1, 1))
    lines = []
    meta_model.summary(print_fn=lambda line: lines.append(line))
    assert meta_model.count_params() == 63 and "Total params: 63" in "".join(lines)
    assert meta_model.model.count_params() == meta_model.rule.count_params() == 31


# ------------------------------------------------------------------------------------------------------------ bad input


def bad(**changes):
    """Episodes with some members replaced by what a function makes of them."""
    x, y = episodes()
    parts = {**x, "y": y}
    parts |= {name: change(parts.get(name)) for name, change in changes.items()}
    y = parts.pop("y")
    return {name: value for name, value in parts.items() if value is not None}, y


def entry_points(meta_model, x, y):
    """Every way in that looks at values, by name."""
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    good = episodes()
    return {
        "fit": lambda: meta_model.fit(x, y, verbose=0),
        "fit on a dataset": lambda: meta_model.fit(dataset, verbose=0),
        "validation arrays": lambda: meta_model.fit(*good, validation_data=(x, y), verbose=0),
        "validation dataset": lambda: meta_model.fit(*good, validation_data=dataset, verbose=0),
        "evaluate": lambda: meta_model.evaluate(x, y, verbose=0),
        "evaluate a dataset": lambda: meta_model.evaluate(dataset, verbose=0),
        "train_on_batch": lambda: meta_model.train_on_batch(x, y),
        "test_on_batch": lambda: meta_model.test_on_batch(x, y),
        "meta_gradients": lambda: meta_model.meta_gradients(x, y),
    }


def support_entry_points(meta_model, x):
    return {
        "predict": lambda: meta_model.predict(x, verbose=0),
        "call": lambda: meta_model(x),
        "adapt": lambda: meta_model.adapt(x["support_x"][0], x["support_y"][0]),
    }


@pytest.mark.parametrize("model", [dense, sequential_unbuilt])
def test_labels_out_of_range(model):
    meta_model = compiled(model())
    x, y = bad(y=lambda y: np.where(y == 0, 3, y))
    for name, run in entry_points(meta_model, x, y).items():
        with pytest.raises(ValueError, match=r"Labels must be in \[0, 3\).*`y` with labels from 1 to 3"):
            pytest.fail(f"{name} took it: {run()}")
    x, y = bad(support_y=lambda y: y * 0 - 1)
    for name, run in {**entry_points(meta_model, x, y), **support_entry_points(meta_model, x)}.items():
        with pytest.raises(ValueError, match=r"Labels must be in \[0, 3\).*`support_y` with labels from -1"):
            pytest.fail(f"{name} took it: {run()}")


def test_labels_are_checked_by_the_loss_that_takes_them():
    x, y = bad(support_y=lambda y: y[..., np.newaxis] + 0.0, y=lambda y: y[..., np.newaxis] + 7.5)
    loss, _, _ = compiled(dense(), loss="mse", inner_loss=LOGITS).meta_gradients(x, y)
    assert np.isfinite(loss)


def test_nan():
    def spoil(values):
        values = values.copy()
        values[0, 0, 0] = np.nan
        return values

    meta_model = compiled()
    for member in ("support_x", "query_x"):
        x, y = bad(**{member: spoil})
        points = entry_points(meta_model, x, y)
        points |= support_entry_points(meta_model, x) if member == "support_x" else {}
        for name, run in points.items():
            with pytest.raises(ValueError, match=f"`{member}` has 1 values of .* NaN or infinite"):
                pytest.fail(f"{name} took it: {run()}")


def test_weights():
    meta_model = compiled()
    x, y = episodes()
    ones = np.ones((TASKS, QUERIES), "float32")
    for weight, message in (
        (-ones, "must not be negative"),
        (ones * 0, "All weights of task 0 in `sample_weight` are 0"),
        (ones[:, 0], "`sample_weight` needs a task axis and an example axis"),
        (ones[..., np.newaxis], r"`sample_weight` must be one tensor \(tasks, examples\)"),
        (ones[:, :2], r"numbers of queries \(axis 1\) differ: query_x has 5, sample_weight has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            meta_model.fit(x, y, sample_weight=weight, verbose=0)


def test_shapes_and_keys():
    meta_model = compiled()
    for changes, message in (
        ({"query_x": lambda v: None}, r"keys \['support_x', 'support_y', 'query_x'\].*Received: a dict with keys"),
        ({"query_y": lambda v: np.zeros((TASKS, QUERIES))}, "x must be a dict with keys"),
        ({"query_x": lambda v: v[:2]}, r"numbers of tasks \(axis 0\) differ: support_x has 4, query_x has 2"),
        ({"support_y": lambda v: v[:, :2]}, "numbers of supports"),
        ({"support_y": lambda v: v[:, 0]}, "`support_y` needs a task axis and an example axis"),
        ({"query_x": lambda v: v[..., :2]}, "examples of `support_x` and `query_x` must have one shape"),
        ({"y": lambda v: v[..., np.newaxis]}, "examples of `support_y` and `y` must have one shape"),
    ):
        x, y = bad(**changes)
        for run in (lambda x=x, y=y: meta_model.fit(x, y, verbose=0), lambda x=x, y=y: meta_model.meta_gradients(x, y)):
            with pytest.raises(ValueError, match=message):
                run()
    x, y = bad(support_x=lambda v: v[..., :2], query_x=lambda v: v[..., :2])
    with pytest.raises(ValueError, match=r"takes inputs \(examples, 3\), and `support_x` has \(tasks, 3, 2\)"):
        meta_model.evaluate(x, y, verbose=0)
    with pytest.raises(ValueError, match="x must be a dict with keys .* Received: a .*Tensor"):
        meta_model.predict(episodes()[0]["query_x"], verbose=0)


def test_class_weight():
    meta_model = compiled()
    with pytest.raises(ValueError, match="`class_weight` is not supported.*`sample_weight`"):
        meta_model.fit(*episodes(), class_weight={0: 1.0})
    with pytest.raises(ValueError, match="`class_weight` is not supported.*`sample_weight`"):
        meta_model.train_on_batch(*episodes(), class_weight={0: 1.0})


def test_endless_datasets():
    meta_model = compiled()
    x, y = episodes()
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(2).repeat()
    for message, run in {
        "`x` never ends. Pass `steps_per_epoch=`": lambda: meta_model.fit(endless),
        "`validation_data` never ends. Pass `validation_steps=`": lambda: meta_model.fit(x, y, validation_data=endless),
        "`x` never ends. Pass `steps=`": lambda: meta_model.evaluate(endless),
    }.items():
        with pytest.raises(ValueError, match=message):
            run()
    with pytest.raises(ValueError, match="`x` never ends. Pass `steps=`"):
        meta_model.predict(endless)


def test_compile_forgotten():
    x, y = episodes()
    meta_model = keras_maml.MetaModel(dense())
    for name, run in entry_points(meta_model, x, y).items():
        with pytest.raises(ValueError, match=r"You must call `compile\(\)`"):
            pytest.fail(f"{name} took it: {run()}")
    for name, run in support_entry_points(meta_model, x).items():
        with pytest.raises(ValueError, match=r"no loss to adapt by. Call `compile\(optimizer=..., loss=...\)` first"):
            pytest.fail(f"{name} took it: {run()}")
    with pytest.raises(ValueError, match="is judged by a loss, and got none. Pass `loss=` to `compile`"):
        meta_model.compile("sgd")


class Unused(keras.Model):
    """Builds a layer that its call leaves out."""

    def __init__(self):
        super().__init__(name="unused")
        self.head, self.forgotten = keras.layers.Dense(WAYS, name="head"), keras.layers.Dense(2, name="forgotten")

    def build(self, input_shape):
        self.head.build(input_shape)
        self.forgotten.build(input_shape)

    def call(self, inputs):
        return self.head(inputs)


@pytest.mark.parametrize(
    "algorithm",
    [keras_maml.MAML(), keras_maml.FOMAML(), keras_maml.Reptile(), keras_maml.IMAML(steps=1)],
    ids=lambda algorithm: type(algorithm.meta_gradient).__name__,
)
def test_weights_without_a_meta_gradient_are_named(algorithm):
    estimator = type(algorithm.meta_gradient).__name__
    message = rf"no meta-gradient from `{estimator}`: \['unused/forgotten/kernel', 'unused/forgotten/bias'\]"
    meta_model = compiled(Unused(), algorithm)
    for run in (lambda: meta_model.fit(*episodes(), verbose=0), lambda: meta_model.meta_gradients(*episodes())):
        with pytest.raises(ValueError, match=message):
            run()
    model = Unused()
    model.forgotten.trainable = False
    compiled(model, algorithm).meta_gradients(*episodes())


def test_layers_frozen_after_construction():
    x, y = episodes()
    model = named()
    meta_model = compiled(model)
    for frozen in ("hidden", "head"):
        for layer in model.layers:
            layer.trainable = layer.name != frozen
        for name, run in {**entry_points(meta_model, x, y), **support_entry_points(meta_model, x)}.items():
            with pytest.raises(ValueError, match="has 2 trainable weights, and they .* not .* Freeze layers first"):
                pytest.fail(f"{name} took it: {run()}")
    # The same number of other weights is a change too.
    exchanged = compiled(model)
    for layer in model.layers:
        layer.trainable = layer.name != "hidden"
    with pytest.raises(ValueError, match="has 2 trainable weights, and they .* not .* Freeze layers first"):
        exchanged.meta_gradients(x, y)


@pytest.mark.parametrize("steps", [-1, True, 2.5])
def test_steps_of_adapt(steps):
    x, _ = episodes()
    with pytest.raises(ValueError, match=f"`steps` must be an integer of at least 0. Received: steps={steps!r}"):
        compiled().adapt(x["support_x"][0], x["support_y"][0], steps=steps)


def test_arguments():
    for model in ("dense", keras.layers.Dense(1), keras_maml.MetaModel(dense())):
        with pytest.raises(ValueError, match="`model` must be a `keras.Model` that is not a MetaModel"):
            keras_maml.MetaModel(model)
    with pytest.raises(ValueError, match="`algorithm` must be.*Did you mean 'maml'"):
        keras_maml.MetaModel(dense(), "mamal")
    with pytest.raises(ValueError, match="has no layer named 'heed'. Did you mean 'head'"):
        keras_maml.MetaModel(named(), keras_maml.ANIL(head="heed"))
    with pytest.raises(ValueError, match="`task_mapping` must be"):
        keras_maml.MetaModel(dense(), task_mapping="vectorised")


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_outer_gradients_are_clipped_by_the_optimizer(clipping):
    # A kernel and a bias of 0 with large gradients, in a compiled step of plain descent at rate 1: each moves by 0.3,
    # or both by 0.3 together.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.01, 1), "parallel")
    meta_model.compile(keras.optimizers.SGD(1.0, **{clipping: 0.3}), "mse")
    x = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
    meta_model.train_on_batch(x, np.full((1, 1, 1), 100.0))
    moved = np.concatenate([np.ravel(w) for w in model.get_weights()])
    np.testing.assert_allclose(np.hypot(*moved) if clipping == "global_clipnorm" else moved, 0.3, rtol=1e-5)
