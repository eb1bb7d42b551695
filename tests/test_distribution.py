"""One replica against two, on two logical CPU devices, in a process of its own.

A batch of T tasks is divided between the replicas, and all that is learned and logged must be as if it were not. The
outer optimizer is plain gradient descent, so that a gradient that is off by a factor shows in the weights.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest

CASES = (
    "stock normalisation, Unrolled",
    "moving statistics, weights, last batch of 1",
    "ParameterDifference, last batch of 3",
    "Implicit",
    "MetaSGD, vectorized, last batch of 1",
    "SharpnessAware, moving statistics, last batch of 1",
    "moving statistics, last batch of 3",
)

WORKER = '''
import pickle, sys
import numpy as np, tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from keras import layers
import keras_maml

WAYS = 3
norm = keras_maml.layers.BatchNormalization
moving = lambda: keras_maml.layers.BatchNormalization("moving")
uphill = keras_maml.meta_gradients.SharpnessAware(keras_maml.meta_gradients.FirstOrder(), 0.5)
sharp = keras_maml.Algorithm(keras_maml.learning_rules.SGD(0.1), uphill, 1)
# algorithm, normalisation of a convolutional model or `None` for a dense one, tasks in batches of 4
cases = {
    "stock normalisation, Unrolled": (keras_maml.MAML(0.1, 1), layers.BatchNormalization, 12),
    "moving statistics, weights, last batch of 1": (keras_maml.FOMAML(0.1, 1), moving, 9),
    "ParameterDifference, last batch of 3": (keras_maml.Reptile(0.1, 2), layers.ReLU, 11),
    "Implicit": (keras_maml.IMAML(0.1, 1, iterations=2), layers.ReLU, 12),
    "MetaSGD, vectorized, last batch of 1": (keras_maml.MetaSGD(0.1, 1), None, 9),
    "SharpnessAware, moving statistics, last batch of 1": (sharp, moving, 9),
    "moving statistics, last batch of 3": (keras_maml.FOMAML(0.1, 1), moving, 11),
}

def model(kind):
    """A convolution, or dense layers for `None`, with weights that do not depend on where it is made."""
    if kind is None:
        body = [layers.Flatten(), layers.Dense(8, "tanh")]
    else:
        body = [layers.Conv2D(4, 3, strides=2), kind(), layers.ReLU(), layers.Flatten()]
    made = keras.Sequential([keras.Input((6, 6, 1)), *body, layers.Dense(WAYS)])
    rng = np.random.default_rng(0)
    for variable in made.trainable_variables:
        variable.assign(rng.normal(0.3, 0.3, variable.shape))
    return made

def episodes(shape, weights=False):
    rng = np.random.default_rng(1)
    labels = np.tile(np.arange(WAYS), 2)
    x = {
        "support_x": rng.normal(size=(shape, 6, 6, 6, 1)).astype("float32"),
        "support_y": np.stack([rng.permutation(labels) for _ in range(shape)]).astype("int32"),
        "query_x": rng.normal(size=(shape, 6, 6, 6, 1)).astype("float32"),
    }
    y = np.stack([rng.permutation(labels) for _ in range(shape)]).astype("int32")
    data = (x, y, rng.uniform(0.1, 2.0, (shape, 6)).astype("float32")) if weights else (x, y)
    return tf.data.Dataset.from_tensor_slices(data).batch(4)

def compiled(made, algorithm, mapping="auto", log_before=False):
    meta_model = keras_maml.MetaModel(made, algorithm, mapping, log_before=log_before)
    # Rate 2: weights move by about their own size.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    meta_model.compile(keras.optimizers.SGD(2.0), loss, metrics=["accuracy"])
    return meta_model

def run(strategy, name, export=None):
    algorithm, kind, tasks = cases[name]
    data, whole = episodes(tasks, "weights" in name), "Unrolled" in name
    with strategy.scope():
        meta_model = compiled(model(kind), algorithm, log_before=whole)
    before = [v.numpy() for v in meta_model.variables]
    history = meta_model.fit(data, validation_data=data if whole else None, verbose=0).history
    if export and whole:
        meta_model.export(export)
        first = {k: v[0] for k, v in next(iter(data))[0].items()}
        served = tf.saved_model.load(export).signatures["serving_default"](**first)["predictions"].numpy()
    return {
        "paths": [v.path.partition("/")[2] for v in meta_model.variables],
        "before": before,
        "after": [v.numpy() for v in meta_model.variables],
        "copies": [[c.numpy() for c in getattr(v.value, "values", [v.value])] for v in meta_model.variables],
        "logs": {k: v[0] for k, v in history.items()},
        "predictions": meta_model.predict(data, verbose=0) if whole else None,
        "served": served if export and whole else None,
    }

def masked_predictions(strategy):
    """Predictions of each replica on the same batch, through dropout."""
    with strategy.scope():
        drop = layers.Dropout(0.5, seed=3)
        made = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), drop, layers.Dense(WAYS)])
        made.layers[-1].kernel.assign(np.ones((36, WAYS)))
        meta_model = compiled(made, keras_maml.FOMAML(0.1, 1), "parallel")
    x, y = tf.nest.map_structure(lambda t: tf.repeat(t, 2, 0), next(iter(episodes(1))))  # twice the same task
    step = tf.function(lambda: strategy.run(lambda: meta_model.meta_gradients(x, y)[1]))
    return [values.numpy() for values in strategy.experimental_local_results(step())]

class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.outer_step.numpy()) == 5:
            raise InterruptedError

def resumed(strategy, folder, *interrupt):
    """Weights and logs after 4 epochs of 2 batches."""
    with strategy.scope():
        meta_model = compiled(model(None), keras_maml.FOMAML(0.1, 1), "parallel")
    callbacks = [keras.callbacks.BackupAndRestore(folder), *interrupt]
    try:
        meta_model.fit(episodes(32).repeat(), epochs=4, steps_per_epoch=2, callbacks=callbacks, verbose=0)
    except InterruptedError:
        return resumed(strategy, folder)
    return [v.numpy() for v in meta_model.variables]

def skipped(strategy):
    """Weights and logs where tasks overflow: both of the first replica, one of the second, all."""
    with strategy.scope():
        made = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(WAYS)])
        made.layers[-1].kernel.assign(np.random.default_rng(0).normal(size=(36, WAYS)))
        model_of_tasks = keras_maml.MetaModel(made, keras_maml.FOMAML(0.1, 1), skip_non_finite=True)
        model_of_tasks.compile(keras.optimizers.SGD(2.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = next(iter(episodes(12).unbatch().batch(12)))
    bad = np.zeros((12, 1, 1, 1, 1), bool)
    bad[[0, 1, 6, 8, 9, 10, 11]] = True
    x = {**x, "support_x": tf.where(bad, tf.constant(3e38), x["support_x"])}
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    history = model_of_tasks.fit(data, verbose=0, shuffle=False).history
    found = model_of_tasks.evaluate(data, verbose=0, return_dict=True)
    logs = {**{k: v[0] for k, v in history.items()}, **{f"test_{k}": v for k, v in found.items()}}
    return [v.numpy() for v in model_of_tasks.variables], logs

answers = {}
one = tf.distribute.get_strategy()
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
folder = sys.argv[1]
for name in cases:
    answers[name] = run(one, name), run(two, name, folder + "/" + name)
answers["masked"] = masked_predictions(one), masked_predictions(two)
answers["skipped"] = [skipped(strategy) for strategy in (one, two)]
answers["resumed"] = resumed(two, folder + "/whole"), resumed(two, folder + "/parts", Interrupt())
pickle.dump(answers, open(folder + "/answers.pickle", "wb"))
'''


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distribution")
    done = subprocess.run([sys.executable, "-c", WORKER, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return pickle.loads((folder / "answers.pickle").read_bytes())


@pytest.mark.parametrize("name", CASES)
def test_weights_and_state_are_those_of_one_replica(answers, name):
    one, two = answers[name]
    for path, expected, after in zip(one["paths"], one["after"], two["after"], strict=True):
        np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-6, err_msg=path)
    for path, copies in zip(two["paths"], two["copies"], strict=True):
        assert len(copies) == 2
        np.testing.assert_array_equal(*copies, err_msg=path)
    # Else nothing would be tested: rates and all other weights move, and moments where they are "moving".
    still = {p for p, a, b in zip(one["paths"], one["before"], one["after"], strict=True) if np.abs(b - a).max() < 1e-3}
    allowed = {"bias", "moving_mean", "moving_variance"} if name.startswith("stock") else {"bias"}
    assert {path.rpartition("/")[2] for path in still} <= allowed


@pytest.mark.parametrize("name", CASES)
def test_logs_are_those_of_one_replica(answers, name):
    one, two = answers[name]
    assert one["logs"].keys() == two["logs"].keys() >= {"loss", "accuracy"}
    for key, value in one["logs"].items():
        np.testing.assert_allclose(two["logs"][key], value, rtol=1e-6, err_msg=key)


def test_all_that_is_logged(answers):
    one, two = answers[CASES[0]]
    names = {"loss", "accuracy", "loss_before", "accuracy_before"}
    assert one["logs"].keys() == names | {f"val_{name}" for name in names}
    np.testing.assert_allclose(two["predictions"], one["predictions"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two["served"], one["predictions"][0], rtol=1e-5, atol=1e-5)


def test_dropout_masks_differ_between_replicas(answers):
    (alone,), (first, second) = answers["masked"]
    np.testing.assert_allclose(first, alone, rtol=1e-5)
    assert np.abs(first - second).max() > 0.1
    assert np.abs(first[0] - first[1]).max() > 0.1  # between tasks, too


def test_an_interrupted_run_goes_on_with_its_episodes(answers):
    whole, parts = answers["resumed"]
    for expected, value in zip(whole, parts, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_tasks_that_are_not_finite_are_skipped_on_every_replica(answers):
    (weights, logs), (expected, expected_logs) = answers["skipped"]
    assert logs["non_finite_tasks"] == logs["test_non_finite_tasks"] == 7
    assert logs.keys() == expected_logs.keys()
    for name, value in expected_logs.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    for value, other in zip(weights, expected, strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6)
