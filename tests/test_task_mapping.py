"""Task mappings on a function that needs no model, then whole models in every mapping, and the choice between them."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import task_mapping
from keras_maml.task_mapping import Parallel, TaskMapping, Vectorized, choose

MAPPINGS = {
    "parallel": Parallel(),
    "one at a time": Parallel(parallel_tasks=1),
    "vectorized": Vectorized(jit_compile=False),
    "vectorized, xla": Vectorized(),
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


@pytest.mark.parametrize("run", ["graph", "eager"])
@pytest.mark.parametrize("name", MAPPINGS)
def test_mapping(name, run):
    def call(episodes):
        return MAPPINGS[name](function, episodes, SPECS)

    if run == "graph":
        signature = {"x": (tf.TensorSpec((None, 2)),), "y": tf.TensorSpec((None,), tf.int32)}
        call = tf.function(call, input_signature=[signature])  # the number of tasks is not known
    for tasks in (1, 3):
        x, y = np.arange(2 * tasks, dtype="float32").reshape(tasks, 2), np.arange(5, 5 + tasks, dtype="int32")
        stacked, (total, (product,)) = call({"x": (tf.constant(x),), "y": tf.constant(y)})
        np.testing.assert_array_equal(stacked["row"], 2 * x)
        np.testing.assert_array_equal(stacked["label"], y)
        np.testing.assert_array_equal(stacked["index"], np.arange(tasks))
        np.testing.assert_allclose(total, np.mean(np.sum(x, 1)))
        np.testing.assert_allclose(product, [np.mean(x[:, 0] * y)])


@pytest.mark.parametrize("run", ["graph", "eager"])
@pytest.mark.parametrize("name", MAPPINGS)
def test_no_task(name, run):
    # What a replica may have of the last batch.
    def call(x, y):
        return MAPPINGS[name](function, {"x": (x,), "y": y}, SPECS)

    if run == "graph":
        call = tf.function(call, input_signature=[tf.TensorSpec((None, 2)), tf.TensorSpec((None,), tf.int32)])
    stacked, (total, (product,)) = call(tf.zeros((0, 2)), tf.zeros((0,), tf.int32))
    assert stacked["row"].shape == (0, 2) and stacked["label"].shape == (0,)
    assert total == 0 and product == [0.0]


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
    for mapping in ("parallel", "vectorized", Vectorized(jit_compile=False), OneByOne()):
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
    for mapping in ("parallel", Vectorized(jit_compile=False), OneByOne()):
        meta_model = compiled(base, mapping)
        step = meta_model.meta_gradients if isinstance(mapping, OneByOne) else tf.function(meta_model.meta_gradients)
        gradients.append(step(*batch(3))[2])
    for others in gradients[1:]:
        for actual, expected in zip(others, gradients[0], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- the choice


class Scale(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2


@pytest.mark.parametrize(
    "layers, shape, mapping, reason",
    [
        ([keras.layers.Dense(2)], (3,), Vectorized, "dense layers with 8 weights"),
        ([keras.layers.LayerNormalization(), keras.layers.Dense(2)], (3,), Vectorized, "dense layers"),
        ([keras.layers.Conv2D(2, 3, name="c"), keras.layers.Flatten()], (4, 4, 1), Parallel, "layer 'c' convolves"),
        ([keras.layers.LSTM(2, name="r")], (4, 1), Parallel, "layer 'r' convolves or recurs"),
        ([keras.layers.Dense(1000), keras.layers.Dense(1000)], (3,), Parallel, "1,005,000 weights: a stack"),
        ([Scale(), keras.layers.Dense(2)], (3,), Parallel, "layers of its own"),
        ([keras.Sequential([keras.layers.Conv1D(2, 3, name="c")])], (4, 1), Parallel, "layer 'c' convolves"),
    ],
    ids=["dense", "normalised", "convolution", "recurrence", "many weights", "own layers", "nested convolution"],
)
def test_choice(layers, shape, mapping, reason):
    base = keras.Sequential([keras.Input(shape), *layers])
    chosen, why = choose(base, base.trainable_variables)
    assert type(chosen) is mapping and reason in why
    meta_model = keras_maml.MetaModel(base)
    assert meta_model.explain_task_mapping().startswith(f"{mapping.__name__}: ")
    assert reason in meta_model.explain_task_mapping()


def test_choice_counts_learned_rates():
    most = task_mapping.MOST_STACKED_WEIGHTS
    base = keras.Sequential([keras.Input((most - 1,)), keras.layers.Dense(1)])
    assert "Vectorized" in keras_maml.MetaModel(base, keras_maml.MAML()).explain_task_mapping()
    assert f"{2 * most:,} weights" in keras_maml.MetaModel(base, keras_maml.MetaSGD()).explain_task_mapping()


def test_explanations():
    assert keras_maml.MetaModel(model(), task_mapping="parallel").explain_task_mapping() == (
        "Parallel: chosen by `task_mapping`."
    )
    assert keras_maml.MetaModel(model(), task_mapping=Vectorized()).explain_task_mapping() == (
        "Vectorized: chosen by `task_mapping`."
    )
    unbuilt = keras_maml.MetaModel(keras.Sequential([keras.layers.Dense(2)]))
    assert unbuilt.explain_task_mapping() == "Not chosen yet: the model is built with the first episode."


def test_names():
    assert task_mapping.get("auto") is None
    assert type(task_mapping.get("parallel")) is Parallel and type(task_mapping.get("vectorized")) is Vectorized
    own = OneByOne()
    assert task_mapping.get(own) is own
    for wrong in ("vectorised", None, Parallel):
        with pytest.raises(ValueError, match=r"must be a `TaskMapping` or one of \['auto', 'parallel', 'vectorized'\]"):
            task_mapping.get(wrong)
    with pytest.raises(ValueError, match="`parallel_tasks` must be at least 1"):
        Parallel(0)


@pytest.mark.parametrize("mapping", [Parallel(), Parallel(3), Vectorized(), Vectorized(jit_compile=False)])
def test_configuration(mapping):
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(mapping)))
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(mapping) and again.get_config() == mapping.get_config()
