"""What adapts: layers named by the user, resolved to variables of one model, and the cut before the first of them."""

import dataclasses
import difflib

import keras

from keras_maml.layers import statistics_of
from keras_maml.roles import Role


@keras.saving.register_keras_serializable("keras_maml")
@dataclasses.dataclass(frozen=True)
class Exclude:
    """Every layer but `layers`; made by `keras_maml.exclude`."""

    layers: tuple

    def get_config(self):
        return {"layers": [layer_reference(layer) for layer in self.layers]}

    @classmethod
    def from_config(cls, config):
        return cls(tuple(keras.saving.deserialize_keras_object(layer) for layer in config["layers"]))


def exclude(*layers):
    """All layers of the model except these, for `Algorithm(layers=...)`.

    What is left out is still meta-learned. Layers put into a model to be left out, between those that adapt, shape the
    inner gradients: a T-Net, or warp layers.

        x = Dense(64, use_bias=False)(inputs)                        # W, adapts
        x = Dense(64, use_bias=False, name="warp")(x)                # T, a start of `"identity"` makes it a plain layer
        keras_maml.Algorithm(SGD(0.1), Unrolled(), steps=5, layers=keras_maml.exclude("warp"))

    After a step on W the product has moved by `-learning_rate * T T' dL/d(TW)` (T' the transpose): T is a learned
    metric. A warp layer is any layer, with its activation too; `examples/warp_layers.py` tries them.

    Args:
        *layers: layer names or layer objects, or roles such as `keras_maml.normalization`.

    Raises:
        ValueError: if no layer is given.

    References:
        - Lee and Choi 2018, "Gradient-based meta-learning with learned layerwise metric and subspace",
          arXiv:1801.05558
        - Flennerhag et al. 2020, "Meta-learning with warped gradient descent", arXiv:1909.00025
    """
    if not layers:
        raise ValueError("`exclude` needs at least one layer, by name or object. Received none.")
    return Exclude(layers)


@keras.saving.register_keras_serializable("keras_maml")
@dataclasses.dataclass(frozen=True)
class Head:
    """The last layer of the model that has weights: what `ANIL` adapts and `BOIL` does not, unless told otherwise."""

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()




def layer_reference(layer):
    """What a config holds of a member of `layers`: a name, or the config of an object of this module."""
    if isinstance(layer, keras.layers.Layer):
        return layer.name
    return keras.saving.serialize_keras_object(layer)


def flatten_layers(model):
    """All layers of a model, nested ones too, the model itself first.

    `Layer._flatten_layers` is private (Keras 3.15); the public `Model.layers` does not see into layers that are not
    models.
    """
    return list(model._flatten_layers())


def seed_variables(model):
    """State variables of all seed generators in a model.

    `Layer._seed_generators` is private (Keras 3.15); publicly, their states can be told from other integers only by
    name.
    """
    return [g.state for layer in flatten_layers(model) for g in layer._seed_generators]


def adapting_mask(model, layers):
    """For each of `model.trainable_variables`, whether it adapts: a tuple of bools.

    Args:
        model: a built model.
        layers: `None` (all), a layer name, a layer object, a `Role`, a sequence of these, `exclude(...)`, or a
            predicate on a variable. What layers have for each inner step, their `weights_of_steps`, never adapts.

    Raises:
        ValueError: if a layer is unknown or ambiguous, has no trainable weights, or if nothing is left to adapt.
    """
    if layers is None:
        mask = tuple(True for _ in model.trainable_variables)
    elif isinstance(layers, Exclude):
        excluded = _variables_of(model, layers.layers, some=False)
        mask = tuple(id(v) not in excluded for v in model.trainable_variables)
    elif callable(layers) and not isinstance(layers, keras.layers.Layer):
        mask = tuple(bool(layers(v)) for v in model.trainable_variables)
    else:
        members = layers if isinstance(layers, (list, tuple)) else (layers,)
        included = _variables_of(model, members)
        mask = tuple(id(v) in included for v in model.trainable_variables)
    of_steps = {id(v) for layer in flatten_layers(model) for v in getattr(layer, "weights_of_steps", ())}
    mask = tuple(adapts and id(v) not in of_steps for v, adapts in zip(model.trainable_variables, mask, strict=True))
    if mask and not any(mask):
        raise ValueError(
            f"No weight of model '{model.name}' adapts with layers={layers!r}. Expected layers with trainable weights; "
            f"those of the model are {_names(model)}."
        )
    return mask


def check_names(model, layers):
    """Raises `ValueError` if a member of `layers` is an object whose name, all that a file can hold, is not unique."""
    members = layers.layers if isinstance(layers, Exclude) else layers if isinstance(layers, tuple) else (layers,)
    for member in members:
        if isinstance(member, keras.layers.Layer):
            _find(model, member.name)


def fingerprint(model):
    """What must not change after a `MetaModel` is made: its trainable variables and whose moments layers use."""
    norms = [layer for layer in flatten_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    return [id(v) for v in model.trainable_variables], [statistics_of(layer) for layer in norms]


def _variables_of(model, members, some=True):
    """Ids of the weights of layers and roles. `some`: whether a role must have any."""
    found = set()
    for member in members:
        if isinstance(member, Role):
            found |= {id(v) for v in member.variables(model, flatten_layers(model)[1:], some)}
            continue
        layer = _find(model, member)
        if not layer.trainable_variables:
            raise ValueError(
                f"Layer '{layer.name}' has no trainable weights, so it cannot be chosen. Layers of model "
                f"'{model.name}' with weights: {_names(model)}."
            )
        found |= {id(v) for v in layer.trainable_variables}
    return found


def _find(model, member):
    layers = flatten_layers(model)[1:]
    if isinstance(member, Head):
        return find_head(model)
    if isinstance(member, keras.layers.Layer):
        if any(layer is member for layer in layers):
            return member
        raise ValueError(f"Layer object '{member.name}' is not part of model '{model.name}'.")
    if not isinstance(member, str):
        raise ValueError(
            "`layers` takes layer names, layer objects, `keras_maml.exclude(...)` of them, roles such as "
            f"`keras_maml.biases`, or a predicate on a variable. Received: {member!r}."
        )
    # `_flatten_layers` lists a shared layer once for each owner.
    matches = {id(layer): layer for layer in layers if layer.name == member}
    if len(matches) > 1:
        raise ValueError(
            f"{len(matches)} layers of model '{model.name}' are named '{member}'. Pass the layer object instead."
        )
    if not matches:
        close = difflib.get_close_matches(member, _names(model), 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(
            f"Model '{model.name}' has no layer named '{member}'.{hint} Layers with weights: {_names(model)}."
        )
    return next(iter(matches.values()))


def find_head(model):
    """The last layer of `model` that has trainable weights; inside a nested model, its last one."""
    owners = [layer for layer in getattr(model, "layers", ()) if layer.trainable_variables]
    if not owners:
        raise ValueError(f"Model '{model.name}' has no layer with trainable weights.")
    last = owners[-1]
    return find_head(last) if isinstance(last, keras.Model) else last


def cut_below(model, layer):
    """The part of a model below a layer, on the model's own layers: from its inputs to what the layer takes.

    Raises:
        ValueError: if the outputs do not come from that layer alone, the reason fit to follow "the model, ".
    """
    tensor, _ = _walk_down(model, layer)
    return keras.Model(model.inputs[0] if type(model) is keras.Sequential else model.input, tensor)


def layers_above(model, layer):
    """The layers between one that `cut_below` can cut at and the outputs, in the order of their calls."""
    return _walk_down(model, layer)[1]


def _walk_down(model, layer):
    """What a layer takes, from which the outputs come alone, and the layers passed on the way from the outputs.

    `KerasTensor._keras_history` and `Layer._inbound_nodes` are private (Keras 3.15); the public `layer.input` is that
    of the layer's first call, which may belong to another model.
    """
    if (type(model) is not keras.Sequential and not _is_functional(model)) or len(model.outputs) != 1:
        raise ValueError("which is subclassed, or has several outputs")
    tensor, operation, above = model.outputs[0], None, []
    while operation is not layer:
        above = [operation, *above] if operation else above
        operation, index, _ = tensor._keras_history
        inputs = operation._inbound_nodes[index].input_tensors
        if len(inputs) != 1:
            raise ValueError(f"whose outputs come from layer '{layer.name}' not alone, or as part of a nested model")
        tensor = inputs[0]
    return tensor, above


def _names(model):
    layers = flatten_layers(model)[1:]
    return list(dict.fromkeys(layer.name for layer in layers if layer.trainable_variables))


def split(model, mask):
    """Cuts a model before its first adapting layer, so that what lies below runs once a task, not once a step.

    The halves are made from a clone: building them from the layers of the user's model would add nodes to its graph.

    Args:
        model: a built model.
        mask: as `adapting_mask` returns.

    Returns:
        `((clone, body, tail), None)`, where the variables of the clone are in the order of those of `model`, or
        `(None, reason)` where the model cannot be cut, the reason `None` where nothing lies below.
    """
    adapting = {id(v) for v, adapts in zip(model.trainable_variables, mask, strict=True) if adapts}
    if type(model) is not keras.Sequential and not _is_functional(model):
        return None, "a subclassed model cannot be cut"
    layers = model.layers
    first = next(
        i for i, layer in enumerate(layers) if adapting & {id(v) for v in layer.trainable_variables}
    )
    if not any(layer.weights for layer in layers[:first]):
        if any(id(v) not in adapting for v in layers[first].trainable_variables) and hasattr(layers[first], "layers"):
            return None, f"the cut would lie inside the nested model '{layers[first].name}'"
        return None, None
    for layer in layers[:first]:
        for inner in flatten_layers(layer):
            if hasattr(inner, "inner_step"):
                return None, f"layer '{inner.name}' is another one in every inner step"
            normalises = isinstance(inner, keras.layers.BatchNormalization) and inner.trainable
            if normalises and statistics_of(inner) == "moving":
                return None, f"layer '{inner.name}' learns its moving statistics in every step"
    if any(_draws(inner) for layer in layers[:first] for inner in flatten_layers(layer)):
        return None, "a layer below the first adapting one draws random numbers, anew in every step"
    for layer in flatten_layers(model):
        if hasattr(layer, "adapt"):
            return None, f"preprocessing layer '{layer.name}' learns more than weights, which a clone would not have"
    try:
        clone = keras.models.clone_model(model)
        if [v.shape for v in clone.variables] != [v.shape for v in model.variables]:
            return None, "a clone of the model has other weights, so a layer's `get_config` is not complete"
        copy_settings(model, clone)
        cut = clone.layers[first].input
        if not isinstance(cut, keras.KerasTensor):
            return None, f"layer '{layers[first].name}' has several inputs"
        # Nested inputs and outputs keep their structure: a dict of outputs has a dict of losses.
        sequential = type(model) is keras.Sequential
        source, sink = (clone.inputs[0], clone.outputs[0]) if sequential else (clone.input, clone.output)
        body, tail = keras.Model(source, cut), keras.Model(cut, sink)
    except Exception as error:  # whatever a layer's own configuration raises: the whole model is right, only slower
        return None, f"no cut before layer '{layers[first].name}': {' '.join(str(error).split())}"
    return (clone, body, tail), None


def _draws(layer):
    """Whether a layer draws random numbers; recurrent layers of Keras have a seed generator without dropout too."""
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    return bool(layer._seed_generators) and not all(rate == 0 for rate in rates)


def copy_settings(model, clone):
    """Gives a clone what configurations do not hold: what is frozen, and whether recurrent layers may use cuDNN."""
    for source, target in zip(flatten_layers(model), flatten_layers(clone), strict=True):
        target.trainable = source.trainable  # of inner layers too, which come later and are put right then
        if hasattr(source, "use_cudnn"):
            target.use_cudnn = source.use_cudnn
    for source, target in zip(model.variables, clone.variables, strict=True):
        target.trainable = source.trainable


def _is_functional(model):
    # Exactly this class: a subclass may have a `call` of its own, which a clone would not run.
    return type(model).__name__ == "Functional" and isinstance(model, keras.Model)
