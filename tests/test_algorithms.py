"""Algorithms as values: what they are made of, what they refuse, and what a file holds of them."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_maml
from keras_maml import (
    ANIL,
    BOIL,
    CAVIA,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    Algorithm,
    MAMLPlusPlus,
    MetaOptNet,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    PrototypeHead,
    Reptile,
    RidgeHead,
    SVMHead,
    algorithms,
)
from keras_maml.learning_rules import SGD, LayerwiseSGD, LearnedSGD, ProximalSGD
from keras_maml.meta_gradients import FirstOrder, Implicit, MultiStep, ParameterDifference, Unrolled
from keras_maml.selection import Exclude, Head

PRESETS = {
    "maml": (MAML, SGD, Unrolled, None),
    "fomaml": (FOMAML, SGD, FirstOrder, None),
    "reptile": (Reptile, SGD, ParameterDifference, None),
    "metasgd": (MetaSGD, LearnedSGD, Unrolled, None),
    "anil": (ANIL, SGD, Unrolled, (Head(),)),
    "boil": (BOIL, SGD, Unrolled, Exclude((Head(),))),
    "imaml": (IMAML, ProximalSGD, Implicit, None),
    "cavia": (CAVIA, SGD, Unrolled, keras_maml.context_parameters),
    "mamlplusplus": (MAMLPlusPlus, LayerwiseSGD, MultiStep, Exclude((keras_maml.normalization,))),
    "protomaml": (ProtoMAML, SGD, Unrolled, None),
}
WITHOUT_STEPS = {
    "protonet": (ProtoNet, PrototypeHead, {"distance": "cosine", "scale": 3.0}),
    "r2d2": (R2D2, RidgeHead, {"regularization": 2.0, "scale": 3.0, "learned": False}),
    "metaoptnet": (MetaOptNet, SVMHead, {"C": 2.0, "scale": 3.0, "learned": False, "iterations": 9}),
}


def model():
    context = keras_maml.layers.ContextParameters(2)
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, name="hidden"), context, keras.layers.Dense(2, name="head")]
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    preset, rule, meta_gradient, layers = PRESETS[name]
    algorithm = preset(learning_rate=0.3, steps=2, evaluation_steps=7, clipnorm=1.5)
    assert type(algorithm.rule) is rule and type(algorithm.meta_gradient) is meta_gradient
    assert (algorithm.rule.learning_rate, algorithm.rule.clipnorm) == (0.3, 1.5)
    assert (algorithm.steps, algorithm.evaluation_steps, algorithm.layers) == (2, 7, layers)
    assert type(algorithms.get(name)) is Algorithm and type(algorithms.get(name).rule) is rule
    assert algorithms.get(algorithm) is algorithm
    assert set(algorithms.PRESETS) == {*PRESETS, *WITHOUT_STEPS}


@pytest.mark.parametrize("name", WITHOUT_STEPS)
def test_presets_without_steps(name):
    preset, start, settings = WITHOUT_STEPS[name]
    algorithm = preset(**settings)
    assert type(algorithm.start) is start and (algorithm.steps, algorithm.evaluation_steps) == (0, None)
    assert {key: algorithm.start.get_config()[key] for key in settings} == settings
    default, of_the_start = algorithms.get(name).start.get_config(), start().get_config()
    assert {key: default[key] for key in settings} == {key: of_the_start[key] for key in settings}


def test_settings_of_single_presets():
    assert Reptile(data="episode").meta_gradient.data == "episode"
    assert type(CAVIA().start) is keras_maml.ZeroContext
    algorithm = IMAML(strength=5.0, iterations=3)
    assert (algorithm.rule.strength, algorithm.meta_gradient.iterations) == (5.0, 3)
    estimator = MAMLPlusPlus(multi_step_share=0.2, first_order_share=0.3).meta_gradient
    assert (estimator.multi_step_share, estimator.first_order_share) == (0.2, 0.3)
    plain = MAMLPlusPlus(multi_step_share=None, first_order_share=None, adapt_normalization=True)
    assert type(plain.meta_gradient) is Unrolled and not plain.meta_gradient.anneals and plain.layers is None
    start = ProtoMAML(distance="cosine", scale=3.0).start
    assert (type(start), start.distance, start.scale) == (PrototypeHead, "cosine", 3.0)
    assert ANIL(head="head").layers == ("head",) and BOIL(head="head").layers == Exclude(("head",))


def test_an_algorithm_is_a_value():
    algorithm = MAML()
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.steps = 3
    assert dataclasses.replace(algorithm, steps=3).steps == 3


def test_one_algorithm_serves_two_models():
    algorithm = Algorithm(LayerwiseSGD(0.1), Unrolled(), 2)
    first, second = (keras_maml.MetaModel(model(), algorithm) for _ in range(2))
    assert first.rule is not second.rule and first.meta_gradient is not second.meta_gradient
    assert not {id(v) for v in first.variables} & {id(v) for v in second.variables}
    assert first.rule.get_config() == second.rule.get_config() == algorithm.rule.get_config()


def test_evaluation_steps():
    # One weight 3, support target 1: each step of 0.1 on (p - 1)^2 / 2 maps p - 1 to 0.9 (p - 1).
    base = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    base.set_weights([np.array([[3.0]])])
    x = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
    half_square = keras.losses.Huber(delta=100.0)
    for evaluation_steps, expected in ((None, 1 + 2 * 0.9**2), (0, 3), (5, 1 + 2 * 0.9**5)):
        meta_model = keras_maml.MetaModel(base, MAML(0.1, 2, evaluation_steps))
        meta_model.compile("sgd", half_square, run_eagerly=True)
        np.testing.assert_allclose(meta_model.predict(x, verbose=0), [[[expected]]], rtol=1e-6)
        np.testing.assert_allclose(meta_model(x, training=True), [[[1 + 2 * 0.9**2]]], rtol=1e-6)
        learner = meta_model.adapt(x["support_x"][0], x["support_y"][0], steps=1)
        np.testing.assert_allclose(learner(x["query_x"][0]), [[1 + 2 * 0.9]], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------- files


def adapting_bias(variable):
    return variable.name == "bias"


ALGORITHMS = {
    **{name: preset(learning_rate=0.3, steps=2) for name, (preset, *_) in PRESETS.items()},
    **{name: preset(**settings) for name, (preset, _, settings) in WITHOUT_STEPS.items()},
    "evaluation steps": MAML(steps=1, evaluation_steps=0),
    "one layer": Algorithm(SGD(), Unrolled(), 1, layers="head"),
    "list of layers": Algorithm(SGD(), Unrolled(), 1, layers=["hidden", "head"]),
    "all but some": Algorithm(SGD(), FirstOrder(), 1, layers=keras_maml.exclude("hidden")),
    "predicate": Algorithm(
        SGD(), Unrolled(), 1, layers=keras.saving.register_keras_serializable("test_algorithms")(adapting_bias)
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_configuration(name):
    algorithm = ALGORITHMS[name]
    config = json.loads(json.dumps(algorithm.get_config()))
    again = Algorithm.from_config(config)
    assert again.get_config() == algorithm.get_config()
    for name in ("steps", "evaluation_steps", "layers"):
        assert getattr(again, name) == getattr(algorithm, name)
    nested = json.loads(json.dumps(keras.saving.serialize_keras_object(algorithm)))
    assert keras.saving.deserialize_keras_object(nested).get_config() == algorithm.get_config()
    meta_models = [keras_maml.MetaModel(model(), a) for a in (algorithm, again)]
    assert meta_models[0].mask == meta_models[1].mask


def test_configuration_of_layer_objects_holds_their_names():
    base = model()
    chosen = Algorithm(SGD(), Unrolled(), 1, layers=[base.layers[-1]])
    excluded = Algorithm(SGD(), Unrolled(), 1, layers=keras_maml.exclude(base.layers[0]))
    for algorithm, expected in ((chosen, ("head",)), (excluded, Exclude(("hidden",)))):
        again = Algorithm.from_config(json.loads(json.dumps(algorithm.get_config())))
        assert again.layers == expected
        assert keras_maml.MetaModel(model(), again).mask == keras_maml.MetaModel(base, algorithm).mask


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("steps", [0, -1, True, 2.5, "3", None])
def test_steps(steps):
    with pytest.raises(ValueError, match=f"`steps` must be an integer of at least 1. Received: steps={steps!r}"):
        MAML(steps=steps)
    if steps not in (0, None) or steps is False:
        with pytest.raises(ValueError, match="`evaluation_steps` must be an integer of at least 0. Received: eval"):
            MAML(evaluation_steps=steps)


@pytest.mark.parametrize("wrong", ["sgd", None, SGD, keras.optimizers.SGD()])
def test_rule_of_a_wrong_type(wrong):
    with pytest.raises(ValueError, match=r"`rule` must be a `LearningRule`, such as `SGD\(\)`. Received: rule="):
        Algorithm(wrong, Unrolled(), 1)


@pytest.mark.parametrize("wrong", ["unrolled", None, Unrolled, SGD()])
def test_meta_gradient_of_a_wrong_type(wrong):
    message = r"`meta_gradient` must be a `MetaGradient`, such as `Unrolled\(\)`. Received: meta_gradient="
    with pytest.raises(ValueError, match=message):
        Algorithm(SGD(), wrong, 1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Algorithm(SGD(), Implicit(), 1), "needs `rule=ProximalSGD"),
        (lambda: Algorithm(LearnedSGD(), ParameterDifference(), 1), "no gradient for learned step sizes.*Use a rule"),
        (lambda: Algorithm(SGD(), ParameterDifference(), 1, layers="head"), "needs `layers=None`.*Use `Unrolled"),
        (lambda: Algorithm(ProximalSGD(), Implicit(), 1, layers=keras_maml.exclude("head")), "needs `layers=None`"),
    ],
)
def test_pairs_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_flags_are_flags():
    with pytest.raises(ValueError, match="`adapt_normalization` must be `True` or `False`. Received:.*'no'"):
        keras_maml.MAMLPlusPlus(adapt_normalization="no")
    with pytest.raises(ValueError, match="`nesterov` must be `True` or `False`. Received: nesterov='yes'"):
        keras_maml.learning_rules.Momentum(nesterov="yes")


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ("mamal", "Did you mean 'maml'?"),
        ("MAML", "Did you mean 'maml'?"),
        ("Meta-SGD", "Did you mean 'metasgd'?"),
        ("FO-MAML", "Did you mean 'fomaml'?"),
        ("gradient descent", "algorithm='gradient descent'."),
        (MAML, "Call the preset: `MAML()`."),
        (["maml"], "algorithm=['maml']."),
        (None, "algorithm=None."),
    ],
)
def test_unknown_algorithms(wrong, hint):
    with pytest.raises(ValueError, match=r"must be an `Algorithm` or one of \['anil', 'boil', 'cavia', 'f") as error:
        algorithms.get(wrong)
    assert str(error.value).endswith(hint)
