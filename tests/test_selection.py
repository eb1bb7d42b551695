"""Which weights adapt, and where a model is cut; in the order of `model.trainable_variables`."""

import json
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.learning_rules import SGD
from keras_maml.meta_gradients import Unrolled
from keras_maml.selection import Exclude, Head, adapting_mask, exclude, find_head, flatten_layers, seed_variables, split

Dense = keras.layers.Dense


def three_layers(*after):
    """`a`, `b`, `c`, two weights each."""
    return keras.Sequential([keras.Input((3,)), Dense(4, name="a"), Dense(4, name="b"), Dense(2, name="c"), *after])


def nested():
    """`encoder/a`, `encoder/b`, `c`, and a second layer named `b`."""
    encoder = keras.Sequential([Dense(4, name="a"), Dense(4, name="b")], name="encoder")
    inputs = keras.Input((3,))
    return keras.Model(inputs, Dense(2, name="b")(Dense(4, name="c")(encoder(inputs))))


def chosen(model, layers):
    """Paths of the layers that adapt."""
    mask = adapting_mask(model, layers)
    assert len(mask) == len(model.trainable_variables)
    paths = [v.path.rpartition("/")[0] for v, adapts in zip(model.trainable_variables, mask, strict=True) if adapts]
    return list(dict.fromkeys(path.removeprefix(f"{model.name}/") for path in paths))


@pytest.mark.parametrize(
    "layers, expected",
    [
        (None, ["a", "b", "c"]),
        ("b", ["b"]),
        (["a", "c"], ["a", "c"]),
        (("a",), ["a"]),
        (exclude("b"), ["a", "c"]),
        (exclude("a", "b"), ["c"]),
        ((Head(),), ["c"]),
        (exclude(Head()), ["a", "b"]),
        (lambda variable: "b/" in variable.path, ["b"]),
    ],
)
def test_choice(layers, expected):
    assert chosen(three_layers(), layers) == expected


def test_choice_by_object():
    model = three_layers()
    assert chosen(model, model.layers[1]) == ["b"]
    assert chosen(model, [model.layers[0], "c"]) == ["a", "c"]
    assert chosen(model, exclude(model.layers[2])) == ["a", "b"]


def test_single_weights_by_predicate():
    assert adapting_mask(three_layers(), lambda variable: variable.name == "bias") == (False, True) * 3


def test_nested_layers():
    model = nested()
    encoder = model.get_layer("encoder")
    assert chosen(model, "encoder") == ["encoder/a", "encoder/b"]
    assert chosen(model, "a") == ["encoder/a"]
    assert chosen(model, encoder.layers[1]) == ["encoder/b"]
    assert chosen(model, exclude("encoder")) == ["c", "b"]


def test_a_shared_layer_is_one_layer():
    shared = Dense(3, name="shared")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Dense(2, name="c")(shared(keras.Sequential([shared], name="inner")(inputs))))
    assert adapting_mask(model, "shared") == adapting_mask(model, "inner") == (True, True, False, False)


def test_frozen_weights_do_not_count():
    model = three_layers()
    model.layers[1].trainable = False
    assert adapting_mask(model, None) == (True,) * 4
    assert chosen(model, exclude("a")) == ["c"]
    with pytest.raises(ValueError, match=r"Layer 'b' has no trainable weights.*with weights: \['a', 'c'\]"):
        adapting_mask(model, "b")


@pytest.mark.parametrize(
    "layers, message",
    [
        ("aa", r"has no layer named 'aa'. Did you mean 'a'\? Layers with weights: \['a', 'b', 'c'\]"),
        ("classifier", r"has no layer named 'classifier'. Layers with weights: \['a', 'b', 'c'\]"),
        (exclude("bb"), r"has no layer named 'bb'. Did you mean 'b'"),
        (Dense(2, name="stranger"), "Layer object 'stranger' is not part of model"),
        (3, r"`layers` takes layer names.*Received: 3"),
        (["a", None], r"`layers` takes layer names.*Received: None"),
        ("activation", "Layer 'activation' has no trainable weights"),
        ((), "No weight of model .* adapts with layers=()"),
        (exclude("a", "b", "c"), "No weight of model .* adapts with layers=Exclude"),
        (lambda variable: False, "No weight of model"),
    ],
)
def test_choices_that_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        adapting_mask(three_layers(keras.layers.ReLU(name="activation")), layers)


def test_an_ambiguous_name_is_refused():
    with pytest.raises(ValueError, match="2 layers of model .* are named 'b'. Pass the layer object instead"):
        adapting_mask(nested(), "b")


def test_exclude_nothing():
    with pytest.raises(ValueError, match="`exclude` needs at least one layer"):
        exclude()


@pytest.mark.parametrize("value", [Head(), exclude("a", "b"), exclude(Head())])
def test_configuration(value):
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(value)))
    assert keras.saving.deserialize_keras_object(serialized) == value
    assert exclude(Dense(1, name="d")).get_config() == Exclude(("d",)).get_config() == {"layers": ["d"]}


# ------------------------------------------------------------------------------------------------------------ the head


def with_trailing_layers():
    return three_layers(keras.layers.Dropout(0.1), keras.layers.LeakyReLU())


def functional():
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.LeakyReLU()(Dense(2, name="c")(Dense(4, name="b")(inputs))))


def head_in_a_nested_model():
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.Sequential([Dense(4, name="b"), Dense(2, name="c"), keras.layers.ReLU()])(inputs))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body, self.head = Dense(4, name="b"), Dense(2, name="c")

    def call(self, inputs):
        return self.head(self.body(inputs))


def subclassed():
    model = Subclassed()
    model(tf.zeros((1, 3)))
    return model


def frozen_output():
    model = three_layers(Dense(2, trainable=False, name="frozen"))
    return model


@pytest.mark.parametrize(
    "make", [three_layers, with_trailing_layers, functional, head_in_a_nested_model, subclassed, frozen_output]
)
def test_head_is_the_last_layer_with_trainable_weights(make):
    assert find_head(make()).name == "c"


def test_no_head():
    with pytest.raises(ValueError, match="has no layer with trainable weights"):
        find_head(keras.Sequential([keras.Input((3,)), keras.layers.ReLU()]))


# --------------------------------------------------------------------------------------------------------- the model


def test_flatten_layers():
    # `Layer._flatten_layers` is private.
    model = nested()
    layers = flatten_layers(model)
    assert layers[0] is model
    named = [layer.name for layer in layers[1:] if not isinstance(layer, keras.layers.InputLayer)]
    assert sorted(named) == ["a", "b", "b", "c", "encoder"]


def test_seed_variables():
    # `Layer._seed_generators` is private.
    model = three_layers(keras.layers.Dropout(0.1), keras.Sequential([keras.layers.GaussianNoise(0.1)]))
    expected = [model.layers[3].seed_generator.state, model.layers[4].layers[0].seed_generator.state]
    assert [v is e for v, e in zip(seed_variables(model), expected, strict=True)] == [True, True]
    assert not seed_variables(three_layers())


# ------------------------------------------------------------------------------------------------------------ the cut


def episodes(shape=(3,)):
    generator = np.random.default_rng(0)
    x = {
        "support_x": generator.normal(size=(2, 4, *shape)).astype("float32"),
        "support_y": generator.integers(0, 2, (2, 4)),
        "query_x": generator.normal(size=(2, 5, *shape)).astype("float32"),
    }
    return x, generator.integers(0, 2, (2, 5))


def compiled(model, layers, whole=False):
    meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(SGD(0.3), Unrolled(), 2, layers=layers), "parallel")
    meta_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if whole:
        meta_model._halves = None
    return meta_model


def skip_connection_below():
    inputs = keras.Input((3,))
    hidden = Dense(3, name="a", kernel_regularizer="l2")(inputs)
    outputs = Dense(2, name="c", kernel_regularizer="l2")(Dense(4, name="b")(keras.layers.add([hidden, inputs])))
    return keras.Model(inputs, outputs)


def two_heads():
    inputs = keras.Input((3,))
    hidden = Dense(3, name="a")(inputs)
    return keras.Model(inputs, keras.layers.add([Dense(2, name="b")(hidden), Dense(2, name="c")(hidden)]))


def shared_twice():
    inputs = keras.Input((3,))
    shared = Dense(2, name="shared")
    return keras.Model(inputs, shared(shared(Dense(2, name="a")(inputs))))


def frozen_below():
    model = three_layers()
    model.layers[0].trainable = False
    return model


@pytest.mark.parametrize(
    "make, layers",
    [
        (three_layers, "c"),
        (three_layers, exclude("a")),
        (with_trailing_layers, "c"),
        (skip_connection_below, ["b", "c"]),
        (nested, exclude("encoder")),
        (two_heads, ["b", "c"]),
        (shared_twice, "shared"),
        (frozen_below, ["c"]),
    ],
)
def test_a_cut_changes_no_number(make, layers):
    keras.utils.set_random_seed(0)
    model = make()
    x, y = episodes()
    cut, whole = compiled(model, layers), compiled(model, layers, whole=True)
    assert cut._halves is not None
    loss, predictions, gradients = cut.meta_gradients(x, y)
    whole.outer_step.assign(0)
    expected = whole.meta_gradients(x, y)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    np.testing.assert_allclose(predictions, expected[1], rtol=1e-5, atol=1e-6)
    for gradient, value in zip(gradients, expected[2], strict=True):
        np.testing.assert_allclose(gradient, value, rtol=1e-4, atol=1e-6)
    # The halves hold weights of their own, which no call reads.
    for variable in model.variables:
        variable.assign(variable * 1.5)
    np.testing.assert_allclose(cut(x), whole(x), rtol=1e-5, atol=1e-6)


def test_a_cut_keeps_the_structure_of_inputs_and_outputs():
    first, second = keras.Input((3,), name="z"), keras.Input((3,), name="y")
    hidden = Dense(4, name="a")(keras.layers.concatenate([first, Dense(2)(second)]))
    model = keras.Model(
        {"z": first, "y": second}, {"kind": Dense(2, name="kind")(hidden), "also": Dense(2, name="also")(hidden)}
    )
    x, y = episodes()
    for name in ("support_x", "query_x"):
        x[name] = {"z": x[name], "y": 2 * x[name]}
    x["support_y"], y = ({"kind": labels, "also": 1 - labels} for labels in (x["support_y"], y))
    results = []
    for whole in (False, True):
        meta_model = compiled(model, ["kind", "also"], whole)
        assert whole or meta_model._halves is not None
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        meta_model.compile("sgd", {"kind": loss, "also": loss})
        results.append(meta_model.meta_gradients(x, y))
    for actual, expected in zip(*map(tf.nest.flatten, results), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_cut_leaves_the_graph_of_the_model_alone():
    model = functional()
    nodes = {layer.name: len(layer._inbound_nodes) for layer in model.layers}
    variables = [v.path for v in model.variables]
    x, y = episodes()
    for layers in ("c", exclude("b")):
        compiled(model, layers).meta_gradients(x, y)
    assert {layer.name: len(layer._inbound_nodes) for layer in model.layers} == nodes
    assert [v.path for v in model.variables] == variables
    features = keras.Model(model.input, model.get_layer("c").input)
    assert features(x["query_x"][0]).shape == (5, 4)


def test_the_halves_are_no_part_of_the_meta_model():
    meta_model = compiled(three_layers(), "c")
    assert meta_model._halves is not None
    assert len(meta_model.variables) == 6 + 1 and len(meta_model.trainable_variables) == 6


class Incomplete(keras.layers.Layer):
    """Whose configuration leaves out an argument that its weights depend on."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units))

    def call(self, inputs):
        return inputs @ self.kernel

    def get_config(self):
        return {"name": self.name}


class Refusing(Dense):
    def get_config(self):
        raise KeyError("no configuration")


def two_branches():
    """Of which `b` and `c` adapt, and no one tensor lies below both."""
    inputs = keras.Input((3,))
    branches = [Dense(2, name="b")(Dense(3, name="a")(inputs)), Dense(2, name="c")(Dense(3)(inputs))]
    return keras.Model(inputs, keras.layers.add(branches))


def two_sources():
    inputs = keras.Input((3,))
    sources = [Dense(3, name="a")(inputs), Dense(3, name="b")(inputs)]
    return keras.Model(inputs, Dense(2, name="c")(keras.layers.Attention(use_scale=True, name="mixed")(sources)))


def below(*layers):
    return lambda: keras.Sequential([keras.Input((3,)), *layers, Dense(2, name="c")])


@pytest.mark.parametrize(
    "make, layers, reason",
    [
        (three_layers, "a", None),
        (below(keras.layers.ReLU()), "c", None),
        (subclassed, "c", "a subclassed model cannot be cut"),
        (below(Dense(3), keras.layers.Dropout(0.5)), "c", "draws random numbers"),
        (below(Dense(3), keras.layers.Normalization(name="n")), "c", "layer 'n' learns more than weights"),
        (below(Dense(3), keras_maml.layers.BatchNormalization("moving", name="n")), "c", "'n' learns its moving stat"),
        (nested, lambda variable: "encoder/a" not in variable.path, "cut would lie inside the nested model 'encoder'"),
        (below(Incomplete(5)), "c", "`get_config` is not complete"),
        (below(Refusing(3)), "c", "no cut before layer 'c': .*no configuration"),
        (two_branches, ["b", "c"], "no cut before layer 'b'"),
        (two_sources, ["mixed", "c"], "layer 'mixed' has several inputs"),
    ],
)
def test_models_that_cannot_be_cut_run_whole(make, layers, reason):
    model = make()
    halves, why = split(model, adapting_mask(model, layers))
    assert halves is None
    assert why is reason is None or re.search(reason, why)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        meta_model = compiled(model, layers)
    told = [str(w.message) for w in caught if "runs as a whole" in str(w.message)]
    assert len(told) == (reason is not None) and all(why in message for message in told)
    assert meta_model._halves is None
    meta_model.meta_gradients(*episodes())


def test_a_setting_that_is_changed_later_counts():
    x, _ = episodes()
    model = three_layers()
    cut, whole = compiled(model, "c"), compiled(model, "c", whole=True)
    before = cut(x)
    model.layers[0].activation = keras.activations.tanh
    assert cut._halves is not None and not np.allclose(cut(x), before)
    np.testing.assert_allclose(cut(x), whole(x), rtol=1e-5, atol=1e-6)


def test_features_of_an_adapted_preprocessing_layer():
    # A clone would have the mean 0 and the variance 1 of a layer that has seen no data.
    x, _ = episodes()
    normalization = keras.layers.Normalization()
    normalization.adapt(x["support_x"].reshape(-1, 3) * 5 + 3)
    model = keras.Sequential([keras.Input((3,)), normalization, Dense(3, name="a"), Dense(2, name="c")])
    with pytest.warns(UserWarning, match="learns more than weights, which a clone would not have"):
        cut, whole = compiled(model, "c"), compiled(model, "c", whole=True)
    np.testing.assert_allclose(cut(x), whole(x), rtol=1e-6)
