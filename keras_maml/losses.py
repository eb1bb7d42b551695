"""The loss of one task: the compiled Keras loss, weighted as episodes need it.

```
loss = sum(weight * loss of an example) / sum(weight)        # reduction "sum": not divided
```

Keras divides by the number of rows instead, which makes the loss of a padded episode too small, and by the number of
replicas, which would shrink every inner step under `tf.distribute`. So the values of the single examples are taken from
the Keras loss, and reduced here.
"""

import keras
import tensorflow as tf

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum")


class TaskLoss:
    """`(y, predictions, weight) -> scalar` for one task.

    Args:
        loss: what `compile(loss=...)` takes: a name, a function, a `keras.losses.Loss`, or for a model with several
            outputs a list or dict of them, structured as the outputs, with `None` for an output without a loss.
        loss_weights: `None`, or numbers structured as `loss`.

    Raises:
        ValueError: if the loss is missing or has no reduction, or if the structures differ.
    """

    def __init__(self, loss, loss_weights=None):
        if all(member is None for member in tf.nest.flatten(loss)):
            raise ValueError(
                "A few-shot learner is judged by a loss, and got none. Pass `loss=` to `compile`; another loss for the "
                "inner steps is `inner_loss=` of `MetaModel`."
            )
        self.losses = _map(_resolve, loss)
        self.weights = _map(lambda _: 1.0, loss) if loss_weights is None else loss_weights
        if not _same_structure(self.losses, self.weights):
            raise ValueError(
                f"`loss_weights` must be structured as `loss`. Received: loss={loss}, loss_weights={loss_weights}."
            )

    def __call__(self, y, predictions, weight=None):
        """The loss of one task.

        Args:
            y: labels, `(examples, ...)` for each output.
            predictions: `(examples, ...)` for each output.
            weight: `(examples,)` or `None`.
        """
        for name, value in (("predictions", predictions), ("y", y)):
            if not _same_structure(self.losses, value):
                raise ValueError(
                    "The loss, the predictions and y of a model with several outputs must share one structure (a list "
                    f"or a dict with the same keys). Received: loss={_skeleton(self.losses)}, "
                    f"{name}={_skeleton(value)}."
                )
        terms = zip(
            *(tf.nest.flatten(part) for part in (self.losses, self.weights, y, predictions)), strict=True
        )
        # As in Keras, an output whose loss is `None` is neither learned from nor judged.
        return tf.add_n([w * _reduce(loss, target, p, weight) for loss, w, target, p in terms if loss is not None])

    def label_limit(self, predictions_shape):
        """Greatest label plus one, if the loss takes class indices and there is one output; else `None`."""
        loss = self.losses
        if getattr(loss, "ignore_class", None) is not None:
            return None
        named = getattr(loss, "fn", loss)
        sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or (
            getattr(named, "__name__", "") == "sparse_categorical_crossentropy"
        )
        config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
        if config.get("axis", -1) != -1 or config.get("ignore_class") is not None:
            return None
        return predictions_shape[-1] if sparse and isinstance(predictions_shape, tuple) else None


def _resolve(loss):
    resolved = keras.losses.get(loss)
    if isinstance(resolved, keras.losses.Loss) and resolved.reduction not in REDUCTIONS:
        raise ValueError(
            f"The loss of a task is one number, and {type(resolved).__name__} has reduction={resolved.reduction!r}. "
            f"Expected one of {REDUCTIONS}."
        )
    return resolved


def _reduce(loss, y, predictions, weight):
    mask = keras_mask(predictions)
    is_object = isinstance(loss, keras.losses.Loss)
    # At least the precision of the loss, as in Keras, and at least that of the predictions.
    dtype = keras.backend.result_type(predictions.dtype, loss.dtype if is_object else keras.config.floatx())
    y, predictions = _same_rank(tf.cast(y, dtype), tf.cast(predictions, dtype))
    values = tf.convert_to_tensor(loss.call(y, predictions) if is_object else loss(y, predictions))
    # Keras hangs a mask on the values as well, where labels of an `ignore_class` are left out.
    factors = [factor for factor in (weight, mask, keras_mask(values)) if factor is not None]
    rank = values.shape.rank
    if rank == 0 and not factors:
        return values
    if any(factor.shape.rank > rank for factor in factors):
        raise ValueError(
            f"The loss of a task has shape {tuple(values.shape)}, so that weights or masks of shapes "
            f"{[tuple(factor.shape) for factor in factors]} cannot be applied to it. Expected a loss function that "
            "returns one value for each example (and for each step of it, if the model masks steps)."
        )
    weights = tf.ones([1] * rank, values.dtype)
    for factor in factors:
        weights *= append_axes(tf.cast(factor, values.dtype), rank)
    # `where`: a padded example may have any loss, and 0 * inf is NaN.
    total = tf.reduce_sum(tf.where(weights != 0, weights * values, 0))
    if is_object and loss.reduction == "sum":
        return total
    return total / tf.reduce_sum(tf.broadcast_to(weights, tf.shape(values)))


def keras_mask(tensor):
    """The mask that Keras layers hang on their output, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def append_axes(tensor, rank):
    """A tensor with axes of length 1 behind its own, up to a rank."""
    return tf.reshape(tensor, tf.concat([tf.shape(tensor), tf.ones(rank - tensor.shape.rank, tf.int32)], 0))


def _same_rank(y, predictions):
    # Labels (n,) against predictions (n, 1) would broadcast to (n, n). Keras drops the last axis of (n, steps, 1), and
    # then has one loss for all steps of an example, to which their mask cannot be applied.
    if predictions.shape.rank == y.shape.rank + 1 and predictions.shape[-1] == 1:
        return tf.expand_dims(y, -1), predictions
    if y.shape.rank == predictions.shape.rank + 1 and y.shape[-1] == 1:
        return y, tf.expand_dims(predictions, -1)
    return y, predictions


def _map(function, structure):
    if isinstance(structure, dict):
        return {key: _map(function, value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_map(function, value) for value in structure]
    return function(structure)


def _same_structure(a, b):
    if isinstance(a, dict) or isinstance(b, dict):
        return isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys()
    if isinstance(a, (list, tuple)) or isinstance(b, (list, tuple)):
        return isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b)
    return True


def _skeleton(structure):
    def describe(leaf):
        if hasattr(leaf, "shape"):
            return tuple(leaf.shape)
        return getattr(leaf, "name", None) or getattr(leaf, "__name__", type(leaf).__name__)

    return _map(describe, structure)
