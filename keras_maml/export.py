"""What leaves a `MetaModel`: an adapted Keras model, or a SavedModel that adapts by itself."""

import re
import tempfile
import warnings

import keras
import tensorflow as tf

from keras_maml.adaptation import Task
from keras_maml.layers import BatchNormalization, PerStepBatchNormalization, statistics_of
from keras_maml.selection import copy_settings, flatten_layers

SUPPORT = ("support_x", "support_y", "support_weight")


def specialise(model, params, state):
    """A clone of a model with given weights, whose batch normalisation does by itself what it did inside a task.

    Args:
        model: the base model.
        params: values of its trainable variables.
        state: values of its non-trainable variables.

    Raises:
        ValueError: if the model cannot be cloned, or if the values are not finite.
    """
    bad = [
        v.path
        for v, value in zip(model.trainable_variables, params, strict=True)
        if not bool(tf.reduce_all(tf.math.is_finite(value)))
    ]
    if bad:
        raise ValueError(
            f"Adaptation diverged: {len(bad)} of {len(params)} weights are not finite, the first is '{bad[0]}'. Use a "
            "smaller inner learning rate or fewer steps, and look at the scale of the supports."
        )
    clone = clone_with_weights(model)
    variables = [*clone.trainable_variables, *clone.non_trainable_variables]
    for variable, value in zip(variables, [*params, *state], strict=True):
        variable.assign(value)
    forgotten = []
    for layer in flatten_layers(clone):
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        if type(layer) not in (keras.layers.BatchNormalization, BatchNormalization, PerStepBatchNormalization):
            raise ValueError(
                f"Layer '{layer.name}' is a {type(layer).__name__}, a kind of BatchNormalization of its own, and it is "
                "not known what it should do outside a MetaModel. Use `keras_maml.layers.BatchNormalization`."
            )
        # The class alone decides what a call does; the clone is nobody else's yet. A clone with other layers could be
        # made of Functional models only.
        statistics = statistics_of(layer)
        if type(layer) is PerStepBatchNormalization:
            layer.keep_row()
            if not any(layer is known for known in _in_config(clone)):
                forgotten.append(layer.name)
        if statistics == "batch":
            if type(layer) is not BatchNormalization and not any(layer is known for known in _in_config(clone)):
                forgotten.append(layer.name)
            layer.__class__, layer.statistics = BatchNormalization, "batch"
        else:
            layer.__class__ = keras.layers.BatchNormalization
    if forgotten:
        warnings.warn(
            f"Layers {forgotten} of the learner are made by the constructor of a class, so a file does not say that "
            "they normalise by the examples in a call, or have lost the rows of other steps: saved and loaded, they "
            "would be what the constructor makes. To save the learner, make `keras_maml.layers.BatchNormalization` "
            "in that constructor.",
            stacklevel=3,
        )
    return clone


def _in_config(model):
    """Layers whose class the config of a model holds: those of Sequential and Functional models."""
    if type(model) is not keras.Sequential and type(model).__name__ != "Functional":
        return []
    return [inner for layer in model.layers for inner in (layer, *_in_config(layer))]


def clone_with_weights(model):
    """A model of the same class, configuration and weights that shares none of its variables."""
    try:
        if type(model) is keras.Sequential or type(model).__name__ == "Functional":
            clone = keras.models.clone_model(model)
        else:
            clone = type(model).from_config(model.get_config())
        if not clone.built:
            clone.build_from_config(model.get_build_config())
    except Exception as error:  # whatever the user's own class raises
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ValueError(
            f"Model '{model.name}' of class {type(model).__name__} cannot be cloned: {reason}. Give it `get_config` "
            "(and `from_config`), or use `predict` and `export`, which need no clone."
        ) from error
    if [v.shape for v in clone.variables] != [v.shape for v in model.variables]:
        raise ValueError(
            f"A clone of model '{model.name}' has other weights than the model. Give it a `get_config` that holds all "
            "of its constructor's arguments."
        )
    shared = {id(v) for v in model.variables} & {id(v) for v in clone.variables}
    if shared:
        raise ValueError(
            f"A clone of model '{model.name}' shares {len(shared)} weights with it: its `get_config` holds layers. Put "
            "`keras.saving.serialize_keras_object(layer)` there, and deserialize it in `from_config`."
        )
    for source, target in zip(model.variables, clone.variables, strict=True):
        target.assign(source)
    for source, target in zip(flatten_layers(model), flatten_layers(clone), strict=True):
        _copy_more_than_weights(source, target)
    copy_settings(model, clone)
    return clone


def _copy_more_than_weights(source, target):
    """What Keras's preprocessing layers learn in their own `adapt` and hold beside their weights."""
    if hasattr(source, "save_assets"):  # vocabularies of lookup layers
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)
    if isinstance(source, keras.layers.Normalization):  # constants, computed from its weights
        target.finalize_state()


def save(meta_model, filepath):
    """See `MetaModel.export`."""
    specs = _episode_specs(meta_model)
    model, learner = meta_model.model, meta_model._learner(False, meta_model._evaluation_steps)
    count = len(learner.model.trainable)
    inputs = _named(specs)
    passed = _passed(learner, taken=inputs["query_x"])

    def values():
        variables = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
        return variables, [tf.convert_to_tensor(v) for v in learner.model.non_trainable]

    def given(name, named):
        return keras.tree.pack_sequence_as(specs[name], [named[key] for key in inputs[name]])

    def adapted(named, query_x=None):
        variables, state = values()
        support = given("support_x", named), given("support_y", named), None
        task = Task(learner, support, (query_x, None, None), state)
        return task, *task.iterates(variables, stop_gradients=True)[0]

    def outputs(predictions):
        flat = keras.tree.flatten(predictions)
        return {name: tf.identity(p) for name, p in zip(_names("predictions", predictions), flat, strict=True)}

    def serving_default(**named):
        task, params, state = adapted(named, given("query_x", named))
        return outputs(task.predict(params, state))

    def adapt(**named):
        _, params, state = adapted(named)
        both = [*params, *state]
        return {name: tf.identity(both[i]) for name, i in passed.items()}

    def predict(**named):
        both = [tf.convert_to_tensor(v) for v in (*learner.model.trainable, *learner.model.non_trainable)]
        for name, i in passed.items():
            both[i] = named[name]
        task = Task(learner, (None, None, None), (given("query_x", named), None, None), both[count:])
        return outputs(task.predict(both[:count], learner.at_step(both[count:], learner.steps)))

    taken = _arguments(inputs, passed, learner)
    functions = (serving_default, adapt, predict)
    signatures = {function.__name__: _concrete(function, taken[function.__name__]) for function in functions}
    module = tf.Module(name=model.name)
    module.weights = [v.value for v in meta_model.variables]
    # Vocabularies and the like, which no variable holds.
    descendants = tf.train.TrackableView(model).descendants()
    module.assets = [d for d in descendants if isinstance(d, tf.saved_model.experimental.TrackableResource)]
    tf.saved_model.save(module, str(filepath), signatures=signatures)


def signatures(meta_model):
    """What the signatures of `MetaModel.export` take and return, without tracing them.

    Returns:
        `{signature: (arguments, results)}`, both `{name: tf.TensorSpec}`.
    """
    specs = _episode_specs(meta_model)
    inputs, learner = _named(specs), meta_model._learner(False, meta_model._evaluation_steps)
    passed = _passed(learner, taken=inputs["query_x"])
    arguments = _arguments(inputs, passed, learner)
    one_batch = tf.function(lambda x: meta_model.model(x), autograph=False).get_concrete_function(specs["query_x"])
    predictions = _named({"predictions": one_batch.structured_outputs})["predictions"]
    weights = {name: arguments["predict"][name] for name in passed}
    results = {"serving_default": predictions, "adapt": weights, "predict": predictions}
    return {name: (arguments[name], results[name]) for name in results}


def _named(specs):
    """`{part: {name: spec}}` of nested structures of specs."""
    return {part: dict(zip(_names(part, s), keras.tree.flatten(s), strict=True)) for part, s in specs.items()}


def _passed(learner, taken):
    """Names of what `adapt` returns and `predict` takes, and their positions among all variables of the model."""
    everything = [*learner.model.trainable, *learner.model.non_trainable]
    names = _unique([v.path for v in everything], taken=[*taken])
    moments = [len(learner.model.trainable) + i for i in _support_moments(learner)]
    moves = learner.steps > 0 or learner.start is None  # without steps only the start makes a difference
    own = [i for i, adapts in enumerate(learner.mask) if adapts and moves or i in learner.reset]
    return {names[i]: i for i in [*own, *moments]}


def _arguments(inputs, passed, learner):
    """`{signature: {name: spec}}` of what the signatures take."""
    everything = [*learner.model.trainable, *learner.model.non_trainable]
    weights = {name: tf.TensorSpec(everything[i].shape, everything[i].dtype) for name, i in passed.items()}
    support, query = {**inputs["support_x"], **inputs["support_y"]}, inputs["query_x"]
    return {"serving_default": {**support, **query}, "adapt": support, "predict": {**query, **weights}}


def _concrete(function, arguments):
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in arguments.items()}
    return tf.function(function, autograph=False).get_concrete_function(**specs)


def _support_moments(learner):
    """Positions among the non-trainable variables of the moments that supports leave to queries."""
    moments = set()
    for layer in flatten_layers(learner.model.function):
        if isinstance(layer, keras.layers.BatchNormalization) and statistics_of(layer) == "support":
            moments |= {id(layer.moving_mean), id(layer.moving_variance)}
    return [i for i, v in enumerate(learner.model.non_trainable) if id(v) in moments]


def _names(name, structure):
    """A name for each tensor of a nested structure: `support_x_<key>`, or `support_x` alone."""
    return _unique(["/".join([name, *map(str, path)]) for path, _ in keras.tree.flatten_with_path(structure)])


def _unique(paths, taken=()):
    """Unique names by path, such as TensorFlow takes: `dense/kernel` to `dense_kernel`, then `dense_kernel_1`."""
    names = list(taken)
    for path in paths:
        base = name = re.sub(r"\W", "_", path if path[0].isalpha() else f"weight_{path}")
        repeat = 0
        while name in names:
            repeat += 1
            name = f"{base}_{repeat}"
        names.append(name)
    return names[len(taken) :]


def widen(seen, x):
    """Specs of all episodes seen: dtypes as in the first, free sizes where they differ.

    Args:
        seen: what this function returned before, at first `{}`.
        x: an episode batch, concrete or being traced.

    Returns:
        Dict of nested structures of `tf.TensorSpec` of one task: `(None, ...)`.
    """
    widened = {}
    for name, value in x.items():
        specs = tf.nest.map_structure(lambda t: tf.TensorSpec((None, *t.shape[2:]), t.dtype), value)
        first, flat = tf.nest.flatten(seen.get(name, specs)), tf.nest.flatten(specs)
        if len(first) == len(flat):
            wider = [a.most_specific_common_supertype([b]) or a for a, b in zip(first, flat, strict=True)]
            specs = tf.nest.pack_sequence_as(seen.get(name, specs), wider)
        widened[name] = specs
    return {**seen, **widened}


def _episode_specs(meta_model):
    """Of one task: dtypes as in the episodes so far, sizes as free as the model leaves them."""
    model, seen = meta_model.model, meta_model._specs.value
    declared = {}
    if model.built and getattr(model, "inputs", None):
        x, y = model.inputs[0], model.outputs[0]
        if type(model) is not keras.Sequential:
            x, y = model.input, model.output
        last, dtype = (None, None) if meta_model._label_limit() is None else (-1, "int32")
        declared["support_x"] = keras.tree.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), x)
        if not keras.tree.is_nested(y):  # else which of several losses takes class indices?
            declared["support_y"] = tf.TensorSpec((None, *y.shape[1:last]), dtype or y.dtype)
    x, y = (seen.get(name, declared.get(name)) for name in ("support_x", "support_y"))
    if x is None or y is None:
        raise ValueError(
            f"Model '{model.name}' does not say what it takes and is trained on, and has seen no episode yet. Call the "
            "MetaModel on one episode, or `fit` it, before `export`."
        )
    if declared and len(keras.tree.flatten(x)) == len(keras.tree.flatten(declared["support_x"])):
        shapes = [spec.shape for spec in keras.tree.flatten(declared["support_x"])]
        specs = [tf.TensorSpec(shape, s.dtype) for shape, s in zip(shapes, keras.tree.flatten(x), strict=True)]
        x = keras.tree.pack_sequence_as(x, specs)
    return {"support_x": x, "support_y": y, "query_x": x}
