"""Other ways than those of training: the function of a model made with that many units, shared weights, refusals."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import Algorithm, PrototypeHead, RidgeHead, SVMHead, ZeroHead
from keras_maml.learning_rules import ALFA, SGD, LayerwiseSGD, LearnedSGD, MetaCurvature, ProximalSGD
from keras_maml.meta_gradients import Implicit, ParameterDifference, SharpnessAware, Unrolled
from keras_maml.selection import Head

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NORMALIZATION = keras_maml.layers.BatchNormalization
STARTS = {"zero": ZeroHead, "prototypes": PrototypeHead, "ridge": RidgeHead, "svm": SVMHead}


def network(ways=3, *middle, above=(), **kwargs):
    keras.utils.set_random_seed(0)
    body = [layers.Dense(4, "tanh", name="body"), NORMALIZATION("support", name="norm"), *middle]
    return keras.Sequential([keras.Input((2,)), *body, layers.Dense(ways, name="head", **kwargs), *above])


def made(start=None, steps=1, model=None, loss=CROSS_ENTROPY, **kwargs):
    parts = {"rule": SGD(0.3), "meta_gradient": Unrolled(), "steps": steps, "start": start or PrototypeHead()}
    meta_model = keras_maml.MetaModel(model or network(), Algorithm(**parts | kwargs), "parallel")
    meta_model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"], run_eagerly=True)
    return meta_model


def batch(ways=5):
    random = np.random.default_rng(0)
    shapes = {"support_x": 2 * ways, "query_x": 4}
    x = {name: random.normal(size=(2, n, 2)).astype("float32") for name, n in shapes.items()}
    x["support_y"] = np.tile(np.arange(2 * ways) % ways, (2, 1))
    return x, random.integers(0, ways, (2, 4))


def assert_same(a, b, **kwargs):
    for one, other in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-4, "atol": 1e-5} | kwargs)


@pytest.mark.parametrize("kind", STARTS)
def test_the_function_of_a_model_made_with_that_many_units(kind, tmp_path):
    x, y = batch(5)
    original, expected = made(STARTS[kind]()), made(STARTS[kind](), model=network(5))
    resized = original.with_ways(5)
    assert_same(resized.meta_gradients(x, y), expected.meta_gradients(x, y))
    predictions = expected.predict(x, verbose=0)
    assert_same(resized.evaluate(x, y, verbose=0), expected.evaluate(x, y, verbose=0))
    learner = original.adapt(x["support_x"][0], x["support_y"][0], ways=5)
    assert_same(learner.predict(x["query_x"][0], verbose=0), predictions[0])
    assert learner.layers[-1].name == "head" and learner.layers[-1].units == 5
    original.export(tmp_path / "exported", ways=5)
    serving = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    found = serving(**{name: tf.constant(value[0], None if "x" in name else tf.int32) for name, value in x.items()})
    assert_same(found["predictions"], predictions[0])


def test_training_one_trains_the_other(tmp_path):
    original = made(RidgeHead(), 2, rule=LayerwiseSGD(0.1))
    resized = original.with_ways(5)
    assert all(a is b for a, b in zip(original.trainable_variables, resized.trainable_variables, strict=True))
    for part in ("rule", "start", "meta_gradient", "optimizer", "inner_loss"):
        assert getattr(original, part) is getattr(resized, part)
    before = [v.numpy() for v in original.trainable_variables]
    resized.fit(*batch(5), verbose=0)
    # The first step of Adam is one of the learning rate in every weight that has a gradient.
    moves = [np.abs(v - value).max() for v, value in zip(original.trainable_variables, before, strict=True)]
    np.testing.assert_allclose(moves, 0.1, rtol=1e-3)
    original.fit(*batch(3), verbose=0)
    assert original.optimizer.iterations == 2
    assert original.outer_step is resized.outer_step and original.outer_step == 2
    # Files know nothing of other ways, and a file of those is a model of its own.
    for meta_model, ways in ((original, 3), (resized, 5)):
        meta_model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_same(loaded.predict(batch(ways)[0], verbose=0), meta_model.predict(batch(ways)[0], verbose=0))
        assert loaded.model.layers[-1].units == ways and loaded.outer_step == 2


def first_bias(variable):
    return variable.name == "bias"


CHOICES = {
    "all": lambda model: None,
    "name": lambda model: "head",
    "object": lambda model: model.get_layer("head"),
    "objects": lambda model: [model.get_layer("body"), model.get_layer("head")],
    "other object": lambda model: model.get_layer("body"),
    "exclude": lambda model: keras_maml.exclude("head"),
    "exclude an object": lambda model: keras_maml.exclude(model.get_layer("head"), "norm"),
    "default head": lambda model: (Head(),),
    "predicate": lambda model: first_bias,
}


@pytest.mark.parametrize("kind", CHOICES)
def test_what_adapts(kind):
    model, other = network(), network(5)
    original = made(model=model, layers=CHOICES[kind](model))
    resized, expected = original.with_ways(5), made(model=other, layers=CHOICES[kind](other))
    assert resized.mask == original.mask == expected.mask
    x, y = batch(5)
    assert_same(resized.meta_gradients(x, y), expected.meta_gradients(x, y))
    if kind != "predicate":
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(resized.algorithm)))
        assert config == json.loads(json.dumps(keras.saving.serialize_keras_object(original.algorithm)))
        # By name or object, they are layers of the resized model.
        assert keras_maml.MetaModel(resized.model, resized.algorithm).mask == original.mask


@pytest.mark.parametrize("kind", ["softmax", "softmax layer", "functional", "one-hot"])
def test_models(kind):
    x, y = batch(5)
    loss = "sparse_categorical_crossentropy" if "softmax" in kind else CROSS_ENTROPY

    def model(ways):
        if kind == "softmax":
            return network(ways, activation="softmax")
        if kind == "softmax layer":
            return network(ways, above=[layers.Softmax()])
        if kind == "functional":
            inputs = keras.Input((2,), name="points")
            return keras.Model({"points": inputs}, network(ways).layers[-1](network(ways).layers[0](inputs)))
        return network(ways)

    if kind == "functional":
        x |= {name: {"points": x[name]} for name in ("support_x", "query_x")}
    if kind == "one-hot":
        x["support_y"], y = np.eye(5)[x["support_y"]], np.eye(5)[y]
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    original, expected = made(model=model(3), loss=loss), made(model=model(5), loss=loss)
    resized = original.with_ways(5)
    assert_same(resized.meta_gradients(x, y), expected.meta_gradients(x, y))
    assert type(resized.model.layers[-1]) is type(expected.model.layers[-1])
    assert resized.model.name == original.model.name
    if kind == "one-hot":
        few = {**x, "support_y": x["support_y"][..., :3]}
        original.predict(few, verbose=0)  # of which an export remembers labels of three classes
        specs = original.with_ways(5)._specs.value
        assert "support_y" not in specs and "support_x" in specs


def test_reports_checks_and_cards(tmp_path):
    original = made(RidgeHead())
    original.compile("adam", CROSS_ENTROPY, metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")])
    resized = original.with_ways(5)
    assert resized._asked_metrics.value[0][0] is not original._asked_metrics.value[0][0]
    data = tf.data.Dataset.from_tensors(batch(5)).repeat(2)
    report = keras_maml.evaluate_episodes(resized, data, tasks=None, steps=(0, 1))
    assert "top2" in str(report)
    findings = keras_maml.check(resized, data)
    assert not [f for f in findings.findings if f.severity == "error"], findings
    card = resized.card(report, tmp_path)
    assert card["model"]["weights"]["set_by_the_start"] == 4 * 5 + 5


def test_nothing_is_kept_of_many_calls():
    original = made()
    first, second = original.with_ways(5), original.with_ways(5)
    assert first.model is second.model  # Keras keeps what was ever called on a layer's output
    assert original.with_ways(4).model is not first.model
    assert first.with_ways(3).predict(batch(3)[0], verbose=0).shape == (2, 4, 3)
    assert_same(first.with_ways(3).predict(batch(3)[0], verbose=0), original.predict(batch(3)[0], verbose=0))


def test_more_classes_than_units():
    x, y = batch(5)
    with pytest.raises(ValueError, match=r"Labels must be in \[0, 3\).*For more classes see `MetaModel.with_ways`"):
        made().predict(x, verbose=0)
    meta_model = keras_maml.MetaModel(network(), keras_maml.MAML())
    meta_model.compile("adam", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"Number the classes of each episode from 0.$"):
        meta_model.predict(x, verbose=0)


@pytest.mark.parametrize("rule", [LayerwiseSGD(0.1), ALFA(0.1)])
def test_rules_with_weights_for_each_variable(rule):
    assert made(rule=rule).with_ways(5).evaluate(*batch(5), verbose=0)


@pytest.mark.parametrize("rule", [LearnedSGD(0.1), MetaCurvature(0.1)])
def test_rules_with_weights_for_each_weight(rule):
    with pytest.raises(ValueError, match=f"`{type(rule).__name__}` has learned weights.*units, and none for.*of 5"):
        made(rule=rule).with_ways(5)
    # Where the head does not adapt they have none for it.
    assert made(rule=rule, layers=keras_maml.exclude("head")).with_ways(5).evaluate(*batch(5), verbose=0)


class Sum(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(x)

    def get_config(self):
        return {}


def subclassed():
    model = Sum()
    model(np.zeros((1, 2)))
    return model


def frozen_above():
    model = network(above=[layers.Dense(3)])
    model.layers[-1].trainable = False
    return model


REFUSED = {
    "no start": (lambda: keras_maml.MetaModel(network(), keras_maml.MAML()), "is meta-learned.*start=None"),
    "subclassed": (lambda: made(ZeroHead(), model=subclassed()), "by replacing its output layer.*subclassed"),
    "weights above": (lambda: made(ZeroHead(), model=frozen_above()), "with weights of layer 'dense"),
    "no dense layer": (
        lambda: made(ZeroHead(), model=keras.Sequential([keras.Input((2, 1)), layers.Conv1D(3, 2), layers.Flatten()])),
        "a Conv1D",
    ),
    "reshaped": (
        lambda: made(ZeroHead(), model=network(2, above=[layers.RepeatVector(2), layers.Flatten()])),
        "make 10 outputs of 5 units",
    ),
    "reptile": (
        lambda: made(ZeroHead(), meta_gradient=ParameterDifference()), "`ParameterDifference` learns.*ways=5"
    ),
    "reptile, sharpness-aware": (
        lambda: made(ZeroHead(), meta_gradient=SharpnessAware(ParameterDifference())), "`ParameterDifference` learns"
    ),
    "unbuilt": (lambda: made(ZeroHead(), model=keras.Sequential([layers.Dense(3)])), "built with the first episode"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_without_other_ways(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        make().with_ways(5)


@pytest.mark.parametrize("ways", [1, 0, True, 5.0, "5", None])
def test_ways(ways):
    with pytest.raises(ValueError, match=f"`ways` must be an integer of at least 2. Received: ways={ways!r}"):
        made().with_ways(ways)


def test_implicit_gradients_with_other_ways():
    parts = {"rule": ProximalSGD(0.1), "meta_gradient": Implicit()}
    x, y = batch(5)
    resized, expected = made(ZeroHead(), 3, **parts).with_ways(5), made(ZeroHead(), 3, model=network(5), **parts)
    assert_same(resized.meta_gradients(x, y), expected.meta_gradients(x, y))
