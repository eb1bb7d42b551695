"""Is the meta-gradient that of the meta-objective? Compared along a random direction, in float64 where that can be."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_maml.selection import flatten_layers

# Relative steps, tried in turn, and bounds. Rounding and curvature leave 1e-7 in float64; kinks of ReLUs that lie
# between two points leave an error in proportion to the step, a wrong gradient one that stays.
PRECISIONS = {"float64": ((1e-6, 1e-7, 1e-8), 1e-4), "float32": ((3e-3, 1e-3), 0.1)}
DIRECTIONS = 3


class Agreement(NamedTuple):
    """`difference`: relative, the least of some directions; `bound`: what is tolerated; `precision`: `"float64"` or
    `"float32"`, where the model could not be cast, for `reason`."""

    difference: float
    bound: float
    precision: str
    reason: str = ""


def compare(meta_model, x, y, sample_weight, seed=0):
    """The meta-gradient of a batch along random directions against finite differences: an `Agreement`."""
    reason = ""
    try:
        compared, precision = cast(meta_model), "float64"
        difference = _difference(compared, precision, *_as_float64((x, y, sample_weight)), seed)
    except Exception as error:  # a user's layer may refuse in any way
        compared, precision, reason = meta_model, "float32", f"{type(error).__name__}: {error}".split("\n")[0]
        difference = _difference(compared, precision, x, y, sample_weight, seed)
    return Agreement(difference, PRECISIONS[precision][1], precision, reason)


def cast(meta_model):
    """A copy of a `MetaModel` in float64, with the same values of all weights. Raises whatever a layer raises."""
    model = meta_model.model
    custom = {type(layer).__name__: type(layer) for layer in flatten_layers(model)}
    with keras.saving.custom_object_scope(custom):
        clone = keras.saving.deserialize_keras_object(_in_float64(keras.saving.serialize_keras_object(model)))
        if not clone.built:
            clone.build(model.input_shape)
        algorithm = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(meta_model.algorithm))
    _copy_values(model, clone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said of the original already
        copy = type(meta_model)(clone, algorithm, "parallel", meta_model.inner_loss)
    copy.compile(optimizer="sgd", loss=meta_model._task_loss.losses, run_eagerly=True)
    copy._task_loss = meta_model._task_loss
    for part in ("rule", "meta_gradient"):
        _copy_values(getattr(meta_model, part), getattr(copy, part))
    return copy


def _copy_values(original, copy):
    for one, other in zip(original.variables, copy.variables, strict=True):
        other.assign(keras.ops.cast(one, other.dtype))


def _in_float64(config):
    """A serialised model with all floating point dtypes replaced."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            name = config["config"]["name"]
            floats = name.startswith("mixed") or keras.backend.is_float_dtype(name)
            return {**config, "config": {"name": "float64" if floats else name}}
        return {
            key: "float64" if key == "dtype" and value in ("float32", "float16", "bfloat16") else _in_float64(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float64(member) for member in config)
    return config


def _as_float64(structure):
    def convert(leaf):
        return tf.cast(leaf, tf.float64) if leaf.dtype.is_floating else leaf

    return tf.nest.map_structure(lambda leaf: None if leaf is None else convert(leaf), structure)


def _difference(meta_model, precision, x, y, sample_weight, seed):
    random = np.random.default_rng(seed)
    values = [v.numpy().astype("float64") for v in meta_model.trainable_variables]
    counter = meta_model.outer_step.numpy()

    def at(shifted):
        meta_model.outer_step.assign(counter)  # the same dropout masks every time
        dtypes = [v.dtype for v in meta_model.trainable_variables]
        given = [tf.constant(value, dtype) for value, dtype in zip(shifted, dtypes, strict=True)]
        loss, _, gradients = meta_model.meta_gradients(x, y, sample_weight, given)
        return float(loss), [np.asarray(g, "float64") for g in gradients]

    try:
        _, gradients = at(values)
        scale = np.sqrt(sum((v**2).sum() for v in values) / sum(v.size for v in values)) or 1.0
        # A direction may happen to lie almost across the gradient, where both are rounding.
        size = 1e-2 * np.sqrt(sum((g**2).sum() for g in gradients)) + 1e-30
        directions = [[random.normal(size=v.shape) for v in values] for _ in range(DIRECTIONS)]

        def along(direction, step):
            up, down = (at([v + s * step * d for v, d in zip(values, direction, strict=True)])[0] for s in (1, -1))
            finite = (up - down) / (2 * step)
            exact = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
            return abs(finite - exact) / max(abs(finite), abs(exact), size)

        least = np.inf
        steps, bound = PRECISIONS[precision]
        for step in steps:
            least = min(least, np.median([along(direction, step * scale) for direction in directions]))
            if least <= bound:
                break
        return float(least)
    finally:
        meta_model.outer_step.assign(counter)
