"""What leaves a `MetaModel`: an adapted Keras model, or a SavedModel that adapts by itself."""

import keras
import tensorflow as tf

from keras_maml.adaptation import Task
from keras_maml.layers import BatchNormalization, statistics_of
from keras_maml.selection import flatten_layers

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
    for layer in flatten_layers(clone):
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        if type(layer) not in (keras.layers.BatchNormalization, BatchNormalization):
            raise ValueError(
                f"Layer '{layer.name}' is a {type(layer).__name__}, a kind of BatchNormalization of its own, and it is not "
                "known what it should do outside a MetaModel. Use `keras_maml.layers.BatchNormalization`."
            )
        # The class alone decides what a call does; the clone is nobody else's yet. A clone with other layers could be
        # made of Functional models only.
        statistics = statistics_of(layer)
        if statistics == "batch":
            layer.__class__, layer.statistics = BatchNormalization, "batch"
        else:
            layer.__class__ = keras.layers.BatchNormalization
    return clone


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
        raise ValueError(
            f"Model '{model.name}' of class {type(model).__name__} cannot be cloned: {str(error).splitlines()[0]} Give it "
            "`get_config` (and `from_config`), or use `predict` and `export`, which need no clone."
        ) from error
    if [v.shape for v in clone.variables] != [v.shape for v in model.variables]:
        raise ValueError(
            f"A clone of model '{model.name}' has other weights than the model. Give it a `get_config` that holds all of "
            "its constructor's arguments."
        )
    for source, target in zip(model.variables, clone.variables, strict=True):
        target.assign(source)
    _copy_trainable(model, clone)
    return clone


def _copy_trainable(model, clone):
    for source, target in zip(flatten_layers(model), flatten_layers(clone), strict=True):
        target._trainable = source._trainable
    for source, target in zip(model.variables, clone.variables, strict=True):
        target.trainable = source.trainable


def save(meta_model, filepath):
    """See `MetaModel.export`."""
    model, learner = meta_model.model, meta_model._learner(False, meta_model._evaluation_steps)
    specs = _episode_specs(meta_model)
    names = _names(learner.model.trainable + learner.model.non_trainable)
    count = len(learner.model.trainable)
    passed = [i for i, adapts in enumerate(learner.mask) if adapts]
    passed += [count + i for i in _support_moments(learner)]

    def values():
        variables = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
        return variables, [tf.convert_to_tensor(v) for v in learner.model.non_trainable]

    def adapted(task, variables):
        ((params, state),) = task.iterates(variables, stop_gradients=True)
        return params, state

    def serving_default(**named):
        variables, state = values()
        support = (_unpack("support_x", specs, named), _unpack("support_y", specs, named), None)
        task = Task(learner, support, (_unpack("query_x", specs, named), None, None), state)
        return _pack("predictions", task.predict(*adapted(task, variables)))

    def adapt(**named):
        variables, state = values()
        support = (_unpack("support_x", specs, named), _unpack("support_y", specs, named), None)
        params, state = adapted(Task(learner, support, (None, None, None), state), variables)
        both = [*params, *state]
        return {names[i]: tf.identity(both[i]) for i in passed}

    def predict(**named):
        variables, state = values()
        both = [*variables[:count], *state]
        for i in passed:
            both[i] = named[names[i]]
        task = Task(learner, (None, None, None), (_unpack("query_x", specs, named), None, None), state)
        return _pack("predictions", task.predict(both[:count], both[count:]))

    everything = [*learner.model.trainable, *learner.model.non_trainable]
    weights = {names[i]: tf.TensorSpec(everything[i].shape, everything[i].dtype) for i in passed}
    support = {**_flat("support_x", specs), **_flat("support_y", specs)}
    query = _flat("query_x", specs)
    signatures = {
        function.__name__: _concrete(function, arguments)
        for function, arguments in (
            (serving_default, {**support, **query}),
            (adapt, support),
            (predict, {**query, **weights}),
        )
    }
    module = tf.Module(name=model.name)
    module.tracked = [v.value for v in (*meta_model.trainable_variables, *learner.model.non_trainable)]
    if meta_model._halves is not None:
        module.tracked += [v.value for v in meta_model._halves.value[0].variables]
    tf.saved_model.save(module, str(filepath), signatures=signatures)


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


def _names(variables):
    """Unique names by path: `dense/kernel` to `dense_kernel`, then `dense_kernel_1`."""
    names = []
    for variable in variables:
        base = name = variable.path.replace("/", "_")
        repeat = 0
        while name in names:
            repeat += 1
            name = f"{base}_{repeat}"
        names.append(name)
    return names


def _episode_specs(meta_model):
    specs = dict(meta_model._specs)
    model = meta_model.model
    if "support_x" not in specs and len(getattr(model, "inputs", None) or ()) == 1:
        source = model.inputs[0]
        specs["support_x"] = tf.TensorSpec((None, *source.shape[1:]), source.dtype)
        sparse = meta_model._label_limit() is not None
        specs["support_y"] = tf.TensorSpec((None,) if sparse else (None, *model.output_shape[1:]), "int32" if sparse else "float32")
    if "support_x" not in specs:
        raise ValueError(
            "The shapes of episodes are not known yet. Call the model on one episode, or `fit` it, before `export`."
        )
    specs["query_x"] = specs["support_x"]
    return specs


def _flat(name, specs):
    return {
        "_".join([name, *map(str, path)]): spec
        for path, spec in keras.tree.flatten_with_path(specs[name])
    }


def _unpack(name, specs, named):
    return keras.tree.pack_sequence_as(specs[name], [named[key] for key in _flat(name, specs)])


def _pack(name, structure):
    return {"_".join([name, *map(str, path)]): tf.identity(t) for path, t in keras.tree.flatten_with_path(structure)}
