"""Is the meta-gradient that of the meta-objective? Compared along a random direction, in float64 where that can be."""

import random
import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_maml.selection import flatten_layers

# Relative steps, tried in turn, and the bound in float64: rounding and curvature leave 1e-7. Kinks of ReLUs between two
# points leave an error in proportion to the step, a wrong gradient one that stays.
STEPS, BOUND = (1e-6, 1e-7, 1e-8), 1e-4
# In float32 rounding may be larger than any difference. So a gradient is contradicted only by finite differences of two
# steps that agree with each other, along most directions.
COARSE_STEPS, COARSE_BOUND, AGREE = (1e-1, 3e-2, 1e-2, 3e-3), 0.2, 0.03
DIRECTIONS = 3


class Agreement(NamedTuple):
    """How far finite differences and the meta-gradient are apart.

    Args:
        difference: relative, the median of some directions. `None` where nothing could be compared.
        bound: what is tolerated.
        precision: `"float64"`, or `"float32"` where the model could not be cast.
        reason: why it was not cast, or not compared.
    """

    difference: float | None
    bound: float
    precision: str
    reason: str = ""


def compare(meta_model, x, y, sample_weight, seed=0):
    """The meta-gradient of a batch along random directions against finite differences: an `Agreement`."""
    try:
        copy = cast(meta_model)
        directions = _Directions(copy, *_as_float64((x, y, sample_weight)), seed)
        return Agreement(directions.fine(), BOUND, "float64")
    except Exception as error:  # a user's layer may refuse in any way
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
    layers = flatten_layers(meta_model.model)
    half = [layer.name for layer in layers if layer.compute_dtype in ("float16", "bfloat16")]
    if half:
        return Agreement(None, COARSE_BOUND, "float32", f"{reason}; layer '{half[0]}' computes in half precision")
    return Agreement(_Directions(meta_model, x, y, sample_weight, seed).coarse(), COARSE_BOUND, "float32", reason)


def cast(meta_model):
    """A copy of a `MetaModel` in float64, with the same values of all weights. Raises whatever a layer raises."""
    model = meta_model.model
    custom = {type(layer).__name__: type(layer) for layer in flatten_layers(model)}
    policy, state = keras.config.dtype_policy(), random.getstate()
    try:
        keras.config.set_dtype_policy("float64")  # for layers that are made inside of others
        with keras.saving.custom_object_scope(custom):
            clone = keras.saving.deserialize_keras_object(_in_float64(keras.saving.serialize_keras_object(model)))
            if not clone.built:
                clone.build(model.input_shape)
            algorithm = _in_float64(keras.saving.serialize_keras_object(meta_model.algorithm))
            algorithm = keras.saving.deserialize_keras_object(algorithm)
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(state)  # initializers without a seed draw one from it
    others = [layer.name for layer in flatten_layers(clone) if layer.compute_dtype not in ("float64", None)]
    others += [v.path for v in clone.variables if keras.backend.is_float_dtype(v.dtype) and v.dtype != "float64"]
    if others:
        raise TypeError(f"'{others[0]}' is not float64")
    _copy_values(model, clone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said of the original already
        copy = type(meta_model)(clone, algorithm, "parallel", meta_model.inner_loss)
    copy.compile(optimizer="sgd", loss=meta_model._task_loss.losses, run_eagerly=True)
    copy._task_loss = meta_model._task_loss
    for part in ("rule", "meta_gradient", "start"):
        if getattr(meta_model, part) is not None:
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


class _Directions:
    """The meta-objective along random directions.

    Args:
        meta_model: in its own precision.
        x, y, sample_weight: a batch.
        seed: of the directions.
    """

    def __init__(self, meta_model, x, y, sample_weight, seed):
        self.meta_model = meta_model
        self.batch = x, y, sample_weight
        self.values = [v.numpy().astype("float64") for v in meta_model.trainable_variables]
        squares = sum((v**2).sum() for v in self.values) / sum(v.size for v in self.values)
        self.scale = float(np.sqrt(squares)) or 1.0
        numbers = np.random.default_rng(seed)
        self.directions = [[numbers.normal(size=v.shape) for v in self.values] for _ in range(DIRECTIONS)]
        _, gradients = self._at(self.values)
        self.exact = [sum((g * d).sum() for g, d in zip(gradients, along, strict=True)) for along in self.directions]
        # A direction may happen to lie almost across the gradient, where both are rounding.
        self.size = 1e-2 * float(np.sqrt(sum((g**2).sum() for g in gradients))) + 1e-30

    def fine(self):
        """The least relative difference over the steps, of the median direction."""
        least = np.inf
        for step in STEPS:
            found = zip(self.directions, self.exact, strict=True)
            least = min(least, np.median([self._apart(self._slope(along, step), exact) for along, exact in found]))
            if least <= BOUND:
                break
        return float(least)

    def coarse(self):
        """The median relative difference along directions whose finite differences agree; `None` if none do."""
        differences = []
        for along, exact in zip(self.directions, self.exact, strict=True):
            slopes = [self._slope(along, step) for step in COARSE_STEPS]
            pairs = [
                (one + other) / 2
                for one, other in zip(slopes[:-1], slopes[1:], strict=True)
                if self._apart(one, other) < AGREE
            ]
            if pairs:
                differences.append(min(self._apart(slope, exact) for slope in pairs))
        return float(np.median(differences)) if differences else None

    def _apart(self, one, other):
        return abs(one - other) / max(abs(one), abs(other), self.size)

    def _slope(self, along, step):
        up, down = (
            self._at([v + sign * step * self.scale * d for v, d in zip(self.values, along, strict=True)])[0]
            for sign in (1, -1)
        )
        return (up - down) / (2 * step * self.scale)

    def _at(self, values):
        """The loss and its meta-gradient."""
        meta_model = self.meta_model
        counter = meta_model.outer_step.numpy()
        variables = meta_model.trainable_variables
        given = [tf.constant(value, v.dtype) for value, v in zip(values, variables, strict=True)]
        try:
            loss, _, gradients = meta_model.meta_gradients(*self.batch, given)
        finally:
            meta_model.outer_step.assign(counter)  # the same dropout masks every time
        return float(loss), [np.asarray(g, "float64") for g in gradients]
