"""Other ways than those of training: a `MetaModel` on the same layers, with an output layer of another size.

A start that sets the whole output layer in every task leaves nothing in it that is learned. So the layer may be another
one, of as many units as there are classes: below it, all layers are shared.
"""

import dataclasses
import warnings

import keras

from keras_maml.algorithms import Algorithm
from keras_maml.meta_gradients import ParameterDifference
from keras_maml.selection import Exclude, cut_below, find_head, layers_above


@dataclasses.dataclass(frozen=True)
class Owned(Algorithm):
    """An algorithm whose parts a `MetaModel` takes for its own, without a copy, and the count of outer steps too."""

    outer_step: keras.Variable | None = None

    def parts(self):
        return self.rule, self.meta_gradient, self.start


def with_ways(meta_model, ways):
    """See `MetaModel.with_ways`."""
    with meta_model.distribute_strategy.scope():  # of which new weights are
        return _with_ways(meta_model, ways)


def _with_ways(meta_model, ways):
    if isinstance(ways, bool) or not isinstance(ways, int) or ways < 2:
        raise ValueError(f"`ways` must be an integer of at least 2. Received: ways={ways!r}.")
    head = _replaceable_head(meta_model)
    estimator = meta_model.meta_gradient
    if isinstance(getattr(estimator, "meta_gradient", estimator), ParameterDifference):  # wrapped, too
        raise ValueError(
            f"`ParameterDifference` learns weights that are adapted together with an output layer of {head.units} "
            f"units, by a gradient of none other. Received: ways={ways}. Train with `FirstOrder()` or `Unrolled()`."
        )
    model = _resized(meta_model, head, ways)
    new_head = find_head(model)
    counterparts = {id(old): new for old, new in zip(head.variables, new_head.variables, strict=True)}
    masked = zip(meta_model.model.trainable_variables, meta_model.mask, strict=True)
    adapting = [counterparts.get(id(v), v) for v, adapts in masked if adapts]
    _check_rule(meta_model, adapting, head.units, ways)
    result = _remade(meta_model, model, {id(v) for v in adapting})
    layers = meta_model.algorithm.layers
    result.algorithm = dataclasses.replace(meta_model.algorithm, layers=_renamed(layers, head, new_head))
    seen = meta_model._specs.value
    indices = meta_model.compiled and meta_model._label_limit() is not None
    result._specs.value = {name: spec for name, spec in seen.items() if name != "support_y" or indices}
    if meta_model.compiled:
        _compile_as(result, meta_model)
    return result


def _replaceable_head(meta_model):
    """The output layer, if nothing in it is learned and it can be made anew in another size."""
    if not meta_model.built or not hasattr(meta_model, "mask"):
        raise ValueError("The model is built with the first episode. Call the MetaModel on one before `with_ways`.")
    model = meta_model.model
    head = find_head(model)
    reset = {id(v) for v in meta_model._reset.value}
    if not {id(v) for v in head.trainable_variables} <= reset:
        start = meta_model.start and type(meta_model.start).__name__
        raise ValueError(
            f"The output layer '{head.name}' is meta-learned, so that one of another size would have learned nothing. "
            f"Received: start={start}. Use an algorithm that sets its weights in every task, such as "
            "`keras_maml.ProtoMAML()` or `Algorithm(..., start=PrototypeHead())`."
        )
    reason = None
    if not isinstance(head, keras.layers.Dense) or len(head.variables) != len(head.trainable_variables):
        reason = f"whose output layer '{head.name}' is a {type(head).__name__}"
    try:
        fixed = [layer.name for layer in layers_above(model, head) if layer.weights]
        reason = f"with weights of layer '{fixed[0]}' above its output layer" if fixed else reason
    except ValueError as error:
        reason = str(error)
    if reason:
        raise ValueError(
            "A model of other ways is made by replacing its output layer: a Sequential or Functional model with one "
            f"output that ends in a trainable `Dense` layer. Received: model '{model.name}', {reason}."
        )
    return head


def _resized(meta_model, head, ways):
    """The model with an output layer of other units, made once for each number: Keras keeps for ever what is called on
    a layer's output."""
    made, model = meta_model._of_ways.value, meta_model.model
    above = layers_above(model, head)
    configs = [layer.get_config() for layer in (head, *above)]
    key = ways, str(configs)
    if key not in made:
        below = cut_below(model, head)
        configs[0]["units"] = ways
        outputs = below.output
        for layer, config in zip((head, *above), configs, strict=True):
            outputs = type(layer).from_config(config)(outputs)
        if outputs.shape[-1] != ways:
            raise ValueError(
                f"The layers above the output layer '{head.name}' of model '{model.name}' make {outputs.shape[-1]} "
                f"outputs of {ways} units. Expected activations only, such as `Softmax`."
            )
        made[key] = keras.Model(below.input, outputs, name=model.name)
    return made[key]


def _check_rule(meta_model, adapting, units, ways):
    rule = meta_model.rule
    if not rule.weights:
        return
    other = type(rule).from_config(rule.get_config())
    other.build(adapting, meta_model.algorithm.steps)
    if [w.shape for w in other.weights] != [w.shape for w in rule.weights]:
        raise ValueError(
            f"`{type(rule).__name__}` has learned weights for every weight of the output layer of {units} units, and "
            f"none for those of one of {ways}. Use `LayerwiseSGD` or a rule without weights, or let the output layer "
            "stay where the start sets it: `layers=keras_maml.exclude(...)`."
        )


def _remade(meta_model, model, adapting):
    """A `MetaModel` on another model, with the very same rule, estimator, start and count of outer steps."""
    algorithm = meta_model.algorithm
    owned = Owned(
        meta_model.rule,
        meta_model.meta_gradient,
        algorithm.steps,
        algorithm.evaluation_steps,
        None if algorithm.layers is None else lambda variable: id(variable) in adapting,
        meta_model.start,
        meta_model.outer_step,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said of the original already
        return type(meta_model)(
            model,
            owned,
            meta_model.task_mapping,
            meta_model.inner_loss,
            meta_model.log_before,
            meta_model.skip_non_finite,
            name=meta_model.name,
        )


def _renamed(layers, old, new):
    """A choice of layers with the output layer, where it is given as an object, replaced."""
    if isinstance(layers, tuple):
        return tuple(new if layer is old else layer for layer in layers)
    if isinstance(layers, Exclude):
        return Exclude(_renamed(layers.layers, old, new))
    return new if layers is old else layers


def _compile_as(result, original):
    """Compiles with another model's loss and optimizer, whose moments are of shared weights, and copies of metrics."""
    task_loss = original._task_loss
    metrics, weighted = (_copies(part) for part in original._asked_metrics.value)
    result.compile(
        optimizer=original.optimizer,
        loss=task_loss.losses,
        loss_weights=task_loss.weights if keras.tree.is_nested(task_loss.weights) else None,
        metrics=metrics,
        weighted_metrics=weighted,
        run_eagerly=original.run_eagerly,
        steps_per_execution=original.steps_per_execution,
        jit_compile=original._jit_compile_asked,
    )
    result._task_loss = task_loss


def _copies(metrics):
    def copy(metric):
        return type(metric).from_config(metric.get_config()) if isinstance(metric, keras.metrics.Metric) else metric

    return keras.tree.map_structure(copy, metrics)
