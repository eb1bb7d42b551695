"""What a report says of how its numbers were taken."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import episodes, protocols

X = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
LABELS = np.arange(60) % 6


def sizes(**parts):
    """`sizes_of_tasks` as lists."""
    arrays = {name: tf.constant(value) for name, value in parts.items()}
    y, sample_weight = arrays.pop("y"), arrays.pop("sample_weight", None)
    return {name: v.numpy().tolist() for name, v in protocols.sizes_of_tasks(arrays, y, sample_weight).items()}


def test_sizes_by_hand():
    # Two tasks: three ways of 2, 1 and 1 shots; two ways of 2 shots.
    found = sizes(support_y=[[0, 0, 1, 2], [1, 0, 0, 1]], y=[[0, 1, 2], [0, 1, 1]])
    expected = {"supports": [4, 4], "queries": [3, 3], "ways": [3, 2], "fewest_shots": [1, 2], "most_shots": [2, 2]}
    assert found == expected
    # An axis of length 1 behind the examples changes nothing.
    assert sizes(support_y=[[[0], [0], [1], [2]], [[1], [0], [0], [1]]], y=[[0, 1, 2], [0, 1, 1]]) == expected


def test_padding_is_not_counted():
    found = sizes(
        support_y=[[0, 0, 1, 0], [1, 0, 0, 1]],
        support_weight=[[1.0, 1, 0.5, 0], [1, 1, 1, 1]],
        y=[[0, 1, 0], [0, 1, 1]],
        sample_weight=[[1.0, 0, 0], [1, 1, 1]],
    )
    assert found == {
        "supports": [3, 4], "queries": [1, 3], "ways": [2, 2], "fewest_shots": [1, 2], "most_shots": [2, 2],
    }


@pytest.mark.parametrize(
    "support_y",
    [np.zeros((2, 4, 1), "float32"), np.zeros((2, 4, 3), "int32"), np.zeros((2, 4, 3), "float32")],
    ids=["targets", "sequences", "one-hot"],
)
def test_sizes_of_tasks_without_classes(support_y):
    assert sizes(support_y=support_y, y=np.zeros((2, 3))) == {"supports": [4, 4], "queries": [3, 3]}


def test_sizes_of_several_outputs():
    labels = {"a": tf.zeros((2, 4), tf.int32), "b": tf.zeros((2, 4, 1))}
    found = protocols.sizes_of_tasks({"support_y": labels}, tf.nest.map_structure(lambda t: t[:, :3], labels), None)
    assert {name: v.numpy().tolist() for name, v in found.items()} == {"supports": [4, 4], "queries": [3, 3]}


def model_with(*normalisations):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), *normalisations])


def described(model, dataset, algorithm, steps=(0, 2), **found):
    meta_model = keras_maml.MetaModel(model, algorithm)
    found = found or {"supports": [4], "queries": [6], "ways": [2], "fewest_shots": [2], "most_shots": [2]}
    return protocols.protocol(meta_model, dataset, steps, {k: np.array(v) for k, v in found.items()})


def test_the_whole_protocol():
    dataset = episodes.from_arrays(X, LABELS, 2, 2, 3, tasks=4, seed=7, start=8)
    model = model_with(keras.layers.BatchNormalization())
    model.name = "net"
    assert described(model, dataset, keras_maml.FOMAML(0.3, 2, evaluation_steps=5)) == {
        "model": "net",
        "tasks": 1,
        "ways": "2",
        "shots": "2",
        "queries": "3",
        "steps": [0, 2],
        "algorithm": "SGD(learning_rate=0.3), FirstOrder",
        "training_steps": 2,
        "evaluation_steps": 5,
        "outer_steps": 0,
        "normalisation": "batch (transductive: queries by their own moments)",
        "seed": "7, from episode 8",
        "precision": "float32",
        "versions": protocols.versions(),
    }
    versions = protocols.versions()
    assert versions["keras_maml"] == keras_maml.__version__
    assert versions["keras"] == keras.__version__
    assert versions["tensorflow"] == tf.__version__


def test_sizes_that_vary():
    found = described(
        model_with(),
        None,
        keras_maml.ANIL(),
        supports=[4, 9], queries=[4, 9], ways=[2, 3], fewest_shots=[1, 3], most_shots=[3, 3],
    )
    assert [found[name] for name in ("tasks", "ways", "shots", "queries")] == [2, "2 to 3", "1 to 3", "2 to 3"]
    assert found["evaluation_steps"] == found["training_steps"]
    found = described(model_with(), None, keras_maml.MAML(), supports=[4, 4], queries=[1, 10])
    assert found["supports_of_a_task"] == "4"
    assert found["queries_of_a_task"] == "1 to 10"
    assert "ways" not in found


@pytest.mark.parametrize(
    "layers, words",
    [
        ([], "no batch normalisation"),
        ([lambda: keras_maml.layers.BatchNormalization("support")], "support (queries by the moments of the supports)"),
        ([lambda: keras_maml.layers.BatchNormalization("moving")], "moving (learned moments)"),
        ([lambda: keras.layers.BatchNormalization(trainable=False)], "moving (learned moments)"),
        ([keras.layers.LayerNormalization], "no batch normalisation"),
        (
            [keras.layers.BatchNormalization, lambda: keras_maml.layers.BatchNormalization("moving")],
            "batch (transductive: queries by their own moments); moving (learned moments)",
        ),
    ],
)
def test_normalisation_in_words(layers, words):
    assert protocols.describe_normalisation(model_with(*(make() for make in layers))) == words


SGD = "SGD(learning_rate=0.4), Unrolled"


def adapting(layers):
    return dataclasses.replace(keras_maml.MAML(0.4), layers=layers)


def kernels(variable):
    return variable.name == "kernel"


@pytest.mark.parametrize(
    "algorithm, words",
    [
        (keras_maml.MAML(0.4, 1), "SGD(learning_rate=0.4), Unrolled"),
        (keras_maml.Reptile(0.4, 1), "SGD(learning_rate=0.4), ParameterDifference(data=support)"),
        (keras_maml.MetaSGD(0.4, clipnorm=2.0), "LearnedSGD(learning_rate=0.4, clipnorm=2.0), Unrolled"),
        (keras_maml.ANIL(0.4), "SGD(learning_rate=0.4), Unrolled, adapts the head"),
        (keras_maml.BOIL(0.4), "SGD(learning_rate=0.4), Unrolled, adapts all but the head"),
        (keras_maml.ANIL(0.4, head="logits"), "SGD(learning_rate=0.4), Unrolled, adapts logits"),
        (adapting(keras_maml.exclude("a", keras.layers.Dense(1, name="b"))), f"{SGD}, adapts all but a, b"),
        (adapting(kernels), f"{SGD}, adapts kernels"),
    ],
)
def test_algorithm_in_words(algorithm, words):
    assert protocols.describe_algorithm(algorithm) == words


def test_seed_in_words():
    def seed(dataset):
        return described(model_with(), dataset, keras_maml.MAML())["seed"]

    make = lambda seed: episodes.from_arrays(X, LABELS, 2, 2, 3, tasks=4, seed=seed)  # noqa: E731
    assert seed(make(episodes.fixed(8, seed=2))) == "fixed(8, seed=2)"
    assert seed(make(None)) == "fresh"
    assert seed(make(3)) == "3, from episode 0"
    # After `take` nobody knows what a dataset is made of.
    assert seed(make(3).take(1)).startswith("unknown")
