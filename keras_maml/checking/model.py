"""What may be wrong with a model and its loss: layers without right second derivatives, losses that see no logits."""

import keras
import numpy as np
import tensorflow as tf

from keras_maml.checking.findings import Finding
from keras_maml.losses import keras_mask
from keras_maml.selection import flatten_layers

BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
CROSS_ENTROPIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    *BINARY,
)
SOFTSIGN = "softsign"
FIRST_ORDER = "use a first-order algorithm such as `keras_maml.FOMAML()`."


def check_layers(model, second_order):
    """Findings of layers, by what they are: nothing runs.

    Args:
        model: the base model.
        second_order: whether second derivatives are taken.
    """
    if not model.trainable_variables:
        yield Finding(
            "nothing-to-learn",
            "error",
            f"Model '{model.name}' has no trainable weight: all its layers are frozen, or have none.",
            "Set `trainable = True` on some layers before making the MetaModel.",
        )
    if not second_order:
        return
    layers = flatten_layers(model)
    bilinear = [layer.name for layer in layers if _resizes(layer, "bilinear")]
    if bilinear:
        yield Finding(
            "bilinear-resizing",
            "error",
            f"Layers {bilinear} resize bilinearly, and TensorFlow drops the second derivative of that without an "
            "error: meta-gradients lack a term.",
            f"Use `interpolation='nearest'`, or {FIRST_ORDER}",
        )
    rematerialised = [layer.name for layer in layers if getattr(layer, "_remat_mode", None) is not None]
    if rematerialised:
        yield Finding(
            "rematerialised-layers",
            "error",
            f"Layers {rematerialised} were made in a `keras.RematScope`. Their gradients hold no path to their own "
            "weights, so that second derivatives are 0, or an error.",
            "Make the model outside of the scope, and use `keras_maml.meta_gradients.Unrolled(rematerialize=True)`, "
            "which rematerialises whole inner steps.",
        )
    without = [layer.name for layer in layers if _activation(layer) == SOFTSIGN or _resizes(layer, "bicubic")]
    if without:
        yield Finding(
            "no-second-derivative",
            "error",
            f"Layers {without} use an operation that has no second derivative in TensorFlow: softsign or bicubic "
            "resizing.",
            f"Use `tanh`, or `interpolation='nearest'`; or {FIRST_ORDER}",
        )


def _resizes(layer, interpolation):
    kinds = (keras.layers.UpSampling2D, keras.layers.Resizing)
    return isinstance(layer, kinds) and getattr(layer, "interpolation", None) == interpolation


def _activation(layer):
    return getattr(getattr(layer, "activation", None), "__name__", None)


def check_loss(loss, y, predictions, weight, model):
    """Findings of a loss, from predictions of one task: does it take what the model gives?

    Args:
        loss: a `TaskLoss`.
        y, predictions: `(Q, ...)`, of one output.
        weight: `(Q,)` or `None`.
        model: the base model.
    """
    if tf.nest.is_nested(predictions) or _name(loss.losses) in ("CosineSimilarity", "cosine_similarity"):
        return
    values = predictions.numpy()
    # Where all are the same, as of a head of zeros, nothing can be told.
    if values.ndim < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return
    probabilities = (values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-3)
    if values.shape[-1] == 1 or isinstance(loss.losses, BINARY):
        probabilities = _activation(getattr(model, "layers", [None])[-1]) == "sigmoid"
    from_logits = _from_logits(loss.losses)
    if from_logits is False and (values.min() < 0 or values.max() > 1):
        yield Finding(
            "logits-taken-for-probabilities",
            "error",
            f"The loss has `from_logits=False`, and the model gives numbers from {values.min():.3g} to "
            f"{values.max():.3g}, which are no probabilities.",
            "Pass `from_logits=True` to the loss, or end the model with a softmax.",
        )
    elif from_logits and probabilities:
        yield Finding(
            "probabilities-taken-for-logits",
            "warning",
            "The loss has `from_logits=True`, and the model ends with probabilities: a softmax of a softmax learns "
            "slowly.",
            "Leave one of the two out: `from_logits=False`, or an output layer without activation.",
        )
    elif not probabilities and values.shape[-1] > 1:
        yield from _scale(loss, y, predictions, weight)


def _scale(loss, y, predictions, weight):
    mask = keras_mask(predictions)

    def at(factor):
        scaled = predictions * tf.cast(factor, predictions.dtype)
        if mask is not None:
            scaled._keras_mask = mask
        return float(loss(y, scaled, weight))

    plain, large, small = at(1.0), at(3.0), at(0.1)
    if np.allclose([large, small], plain, rtol=1e-5, atol=0):
        yield Finding(
            "loss-ignores-scale",
            "warning",
            f"The loss is {plain:.4g} for the predictions, for three times and for a tenth of them: it ignores the "
            "scale of the outputs, so that no inner step can make the model more certain.",
            "Use a loss of logits such as `SparseCategoricalCrossentropy(from_logits=True)`, unless this is meant.",
        )


def _from_logits(loss):
    """Whether a cross-entropy takes logits; `None` for other losses."""
    if isinstance(loss, CROSS_ENTROPIES):
        return bool(loss.get_config()["from_logits"])
    return False if _name(loss).endswith("_crossentropy") else None


def _name(loss):
    return getattr(loss, "__name__", type(loss).__name__)
