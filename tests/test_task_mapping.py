"""Task mappings on a function that needs no model, then whole models in every mapping."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import task_mapping
from keras_maml.task_mapping import Parallel, TaskMapping, UnrolledTasks, Vectorized

MAPPINGS = {
    "parallel": Parallel(),
    "one at a time": Parallel(parallel_tasks=1),
    "vectorized": Vectorized(jit_compile=False),
    "vectorized, xla": Vectorized(),
    "in chunks": Vectorized(jit_compile=False, tasks_at_once=2),
    "in chunks, xla": Vectorized(tasks_at_once=2),
    "unrolled": UnrolledTasks(),
}


class OneByOne(TaskMapping):
    """The definition, as a Python loop: what a user's own mapping may look like."""

    def __call__(self, function, episodes, specs):
        tasks = tf.nest.flatten(episodes)[0].shape[0]
        results = [function(tf.nest.map_structure(lambda v, i=i: v[i], episodes), tf.constant(i)) for i in range(tasks)]
        stacked, averaged = (
            tf.nest.map_structure(lambda *values: tf.stack(values), *parts) for parts in zip(*results, strict=True)
        )
        return stacked, tf.nest.map_structure(lambda values: tf.reduce_mean(values, 0), averaged)


def function(episode, index):
    x, label = episode["x"][0], episode["y"]
    stacked = {"row": x * 2, "label": label, "index": tf.cast(index, tf.float32)}
    return stacked, (tf.reduce_sum(x), [x[:1] * tf.cast(label, tf.float32)])


SPECS = (
    {"row": tf.TensorSpec((2,)), "label": tf.TensorSpec((), tf.int32), "index": tf.TensorSpec(())},
    (tf.TensorSpec(()), [tf.TensorSpec((1,))]),
)


def runs(*names):
    """Pairs of a mapping and a way to run: with T known in a graph, unknown, compiled by XLA around it, eagerly."""
    pairs = [(name, run) for name in MAPPINGS for run in names]
    return pytest.mark.parametrize("name, run", [pair for pair in pairs if pair != ("unrolled", "unknown")])


def caller(name, run, function=function):
    def call(episodes):
        return MAPPINGS[name](function, episodes, SPECS)

    if run == "eager":
        return call
    signature = {"x": (tf.TensorSpec((None, 2)),), "y": tf.TensorSpec((None,), tf.int32)}
    return tf.function(
        call, input_signature=[signature] if run == "unknown" else None, jit_compile=run == "jit", autograph=False
    )


@runs("known", "unknown", "jit", "eager")
def test_mapping(name, run):
    call = caller(name, run)
    # In chunks of 2: one that is not full; full ones; a last chunk that shares a task with the one before.
    for tasks in (1, 4, 3, 5):
        x, y = np.arange(2 * tasks, dtype="float32").reshape(tasks, 2), np.arange(5, 5 + tasks, dtype="int32")
        stacked, (total, (product,)) = call({"x": (tf.constant(x),), "y": tf.constant(y)})
        np.testing.assert_array_equal(stacked["row"], 2 * x)
        np.testing.assert_array_equal(stacked["label"], y)
        np.testing.assert_array_equal(stacked["index"], np.arange(tasks))
        np.testing.assert_allclose(total, np.mean(np.sum(x, 1)), rtol=1e-6)
        np.testing.assert_allclose(product, [np.mean(x[:, 0] * y)], rtol=1e-6)


@runs("known", "unknown", "jit", "eager")
def test_no_task(name, run):
    # What a replica may have of the last batch.
    stacked, (total, (product,)) = caller(name, run)({"x": (tf.zeros((0, 2)),), "y": tf.zeros((0,), tf.int32)})
    assert stacked["row"].shape == (0, 2) and stacked["label"].shape == (0,)
    assert total == 0 and product == [0.0]


@pytest.mark.parametrize("name", ["in chunks", "in chunks, xla"])
def test_a_task_of_two_chunks_counts_once(name):
    # Chunks of tasks 0, 1 and 1, 2. An infinite task 1 must not become 0 * infinity in the second.
    x = tf.constant([[1.0, 1.0], [np.inf, 1.0], [1.0, 1.0]])
    _, (total, _) = caller(name, "known")({"x": (x,), "y": tf.constant([0, 1, 0])})
    assert total == np.inf


def test_an_unknown_number_of_tasks_is_traced_once():
    calls = []

    def counted(episode, index):
        calls.append(index)
        return function(episode, index)

    call = caller("in chunks, xla", "unknown", counted)
    for tasks in (5, 1, 0, 4, 5):
        call({"x": (tf.zeros((tasks, 2)),), "y": tf.zeros((tasks,), tf.int32)})
    assert len(calls) == 1


def test_unrolled_needs_the_number_of_tasks():
    with pytest.raises(ValueError, match="`UnrolledTasks` needs the number of tasks.*use `task_mapping='parallel'`"):
        caller("unrolled", "unknown")({"x": (tf.zeros((1, 2)),), "y": tf.zeros((1,), tf.int32)})


def test_a_mapping_of_ones_own_must_say_how():
    class Idle(TaskMapping):
        pass

    with pytest.raises(NotImplementedError, match="Idle must implement `__call__`"):
        Idle()(function, {}, SPECS)


# ------------------------------------------------------------------------------------------------------- whole models


def batch(tasks):
    """Episodes of a regression, with weights."""
    generator = np.random.default_rng(tasks)

    def normal(*shape):
        return generator.normal(size=(tasks, *shape)).astype("float32")

    x = {"support_x": normal(4, 3), "support_y": normal(4, 2), "query_x": normal(5, 3)}
    x["support_weight"], weight = np.square(normal(4)), np.square(normal(5))
    return x, normal(5, 2), weight


class Batches(keras.utils.PyDataset):
    """One task in the first batch, three in the second: a compiled step sees their number as unknown."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return batch((1, 3)[index])


def model(*layers):
    kernel = keras.regularizers.L2(0.01)
    hidden = keras.layers.Dense(4, activation="tanh", kernel_regularizer=kernel)
    return keras.Sequential([keras.Input((3,)), hidden, *layers, keras.layers.Dense(2)])


def compiled(base, mapping, **kwargs):
    meta_model = keras_maml.MetaModel(base, keras_maml.MetaSGD(0.1, 2), mapping)
    meta_model.compile(keras.optimizers.SGD(0.5), "mse", metrics=["mae"], **kwargs)
    return meta_model


def test_mappings_give_the_same_numbers():
    # Several steps of fit: the rounding of float32, which differs under XLA, grows with each.
    keras.utils.set_random_seed(0)
    base = model(keras.layers.BatchNormalization())
    start = base.get_weights()
    results = []
    for mapping in ("parallel", "vectorized", Vectorized(False, tasks_at_once=2), OneByOne()):
        base.set_weights(start)
        meta_model = compiled(base, mapping, run_eagerly=isinstance(mapping, OneByOne))
        history = meta_model.fit(Batches(), shuffle=False, verbose=0).history
        results.append((list(history.values()), meta_model.predict(Batches(), verbose=0), meta_model.get_weights()))
    for result in results[1:]:
        for actual, expected in zip(tf.nest.flatten(result), tf.nest.flatten(results[0]), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_masks_are_the_same_in_every_mapping():
    # XLA has random numbers of its own.
    base = model(keras.layers.Dropout(0.5))
    gradients = []
    for mapping in ("parallel", "unrolled", Vectorized(False, tasks_at_once=2), OneByOne()):
        meta_model = compiled(base, mapping)
        step = meta_model.meta_gradients if isinstance(mapping, OneByOne) else tf.function(meta_model.meta_gradients)
        gradients.append(step(*batch(3))[2])
    for others in gradients[1:]:
        for actual, expected in zip(others, gradients[0], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_steps_of_one_execution():
    # Four outer steps in one call of the compiled function, or one after another, with dropout: masks advance in both.
    keras.utils.set_random_seed(0)
    base = model(keras.layers.Dropout(0.5))
    start = base.get_weights()
    data = tf.data.Dataset.range(4).map(
        lambda i: tf.nest.map_structure(lambda values: values * tf.cast(i + 1, values.dtype), batch(3))
    )
    results = []
    for steps_per_execution in (1, 4):
        base.set_weights(start)
        meta_model = compiled(base, Vectorized(False, tasks_at_once=2), steps_per_execution=steps_per_execution)
        meta_model.fit(data, verbose=0)
        assert int(meta_model.outer_step) == 4
        results.append(meta_model.get_weights())
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


COMPILED = """
import keras, tensorflow as tf
import keras_maml

model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
mapping = keras_maml.task_mapping.Vectorized(tasks_at_once=2)
meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 1), mapping)
meta_model.compile("sgd", "mse", steps_per_execution=2)
x = {"support_x": tf.ones((5, 3, 2)), "support_y": tf.ones((5, 3, 1)), "query_x": tf.ones((5, 4, 2))}
episodes = tf.data.Dataset.from_tensors((x, tf.ones((5, 4, 1))))
meta_model.fit(episodes.repeat(6), epochs=2, verbose=0)
"""


def test_xla_compiles_once(tmp_path):
    # A gradient through a vectorised loop would be compiled anew in every step, as would a chunk of another size.
    environment = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}
    subprocess.run([sys.executable, "-c", COMPILED], check=True, env=environment, capture_output=True)
    assert len(list(tmp_path.glob("*before_optimizations.txt"))) == 1


def test_names():
    assert task_mapping.get("auto") is None
    assert type(task_mapping.get("parallel")) is Parallel and type(task_mapping.get("vectorized")) is Vectorized
    own = OneByOne()
    assert task_mapping.get(own) is own
    assert type(task_mapping.get("unrolled")) is UnrolledTasks
    names = r"\['auto', 'parallel', 'vectorized', 'unrolled'\]"
    for wrong in ("vectorised", None, Parallel):
        with pytest.raises(ValueError, match=f"must be a `TaskMapping` or one of {names}"):
            task_mapping.get(wrong)
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="`parallel_tasks` must be an integer of at least 1, or None"):
            Parallel(wrong)
        with pytest.raises(ValueError, match="`tasks_at_once` must be an integer of at least 1, or None"):
            Vectorized(tasks_at_once=wrong)


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
def test_configuration(mapping):
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(mapping)))
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(mapping) and again.get_config() == mapping.get_config()
