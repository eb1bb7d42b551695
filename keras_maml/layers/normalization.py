"""Normalisation for few-shot learners: which moments a layer uses, and gradients right to second order.

Two things about stock Keras normalisation are wrong inside an inner loop:

- `tf.nn.moments`, behind Keras's `BatchNormalization` and `GroupNormalization`, stops the gradient at the mean. That
  is right to first order, and silently wrong to second order: 7 to 62 % error of the unrolled meta-gradients
  of a four-layer convolutional net; with `LayerNormalization`, 0.1 % of those of a small Transformer.
- one `training` flag decides both about dropout and about batch or moving statistics, and an evaluation of a
  few-shot learner wants batch statistics without dropout.

And one thing about stock bias addition breaks there: oneDNN merges the gradient of a bias with a filter gradient that
reads the same tensor. In a second-order graph that filter gradient may depend on the bias gradient, and the step stops
with "914 nodes in a cycle" (TensorFlow 2.21, every other trace of a convolution with a bias before a normalisation).

All are put right for the user's unmodified layers by functions that look whether an `adaptation_scope` is open in the
current thread: `BatchNormalization.call`, `tf.nn.moments`, `tf.nn.bias_add`; and `tf.nn.max_pool`, for its speed and
its precision under XLA. Outside such a scope they are the originals. Ways not taken: a wrapper on each layer instance
(a copy of the instance would carry a wrapper bound to the original), rebuilding the model with other layers (a
subclassed model cannot be rebuilt), swapping the functions for the time of a call (replica threads and servers see
each other's swaps).
"""

import contextlib
import functools
import threading
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_maml.second_derivatives import batch_normalization_and_moments, max_pooling

STATISTICS = ("batch", "support", "moving")


class Scope(NamedTuple):
    """What a normalisation layer must know about the call that it is part of.

    Args:
        on: `"support"` or `"query"`, the examples that go through the model.
        weight: `(examples,)` or `None`; rows of weight 0 are left out of every moment.
    """

    on: str
    weight: tf.Tensor = None


_current = threading.local()


@contextlib.contextmanager
def adaptation_scope(on, weight=None):
    """Normalises by the rules of few-shot learning in this thread, until the block ends.

    Args:
        on: `"support"` or `"query"`.
        weight: `(examples,)` or `None`; rows of weight 0 are left out of every moment.
    """
    outer = getattr(_current, "scope", None)
    _current.scope = Scope(on, weight)
    try:
        yield
    finally:
        _current.scope = outer


@keras.saving.register_keras_serializable("keras_maml")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation that says whose moments it uses in a few-shot learner.

    ```
    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
    ```

    | `statistics` | mean and variance inside a `MetaModel` | called by itself |
    |---|---|---|
    | `"batch"` | of the examples in the call: supports and queries each by their own (transductive) | the same |
    | `"support"` | of the task's supports, for queries too; gradients flow through them | as in Keras |
    | `"moving"` | as in Keras: batch moments in `fit`, learned moving moments otherwise | as in Keras |

    A stock `keras.layers.BatchNormalization` inside a `MetaModel` is `"batch"`. A layer with `trainable=False` uses its
    moving moments, as everywhere in Keras. `"batch"` never reads or writes the moving moments.

    Args:
        statistics: `"batch"`, `"support"` or `"moving"`.
        **kwargs: arguments of `keras.layers.BatchNormalization`.

    Raises:
        ValueError: if `statistics` is none of the three.

    References:
        - Ioffe and Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal
          covariate shift", arXiv:1502.03167
        - `"support"`: Triantafillou et al. 2020, "Meta-Dataset: a dataset of datasets for learning to learn from few
          examples", arXiv:1903.03096
    """

    def __init__(self, statistics="batch", **kwargs):
        super().__init__(**kwargs)
        if statistics not in STATISTICS:
            raise ValueError(
                f"`statistics` must be one of {STATISTICS}. Received: statistics={statistics!r}."
            )
        self.statistics = statistics

    def call(self, inputs, training=None, mask=None):
        if current_scope() is None and self.statistics == "batch" and self.trainable:
            return normalise(self, inputs, mask)
        return super().call(inputs, training=training, mask=mask)

    def get_config(self):
        return {**super().get_config(), "statistics": self.statistics}


def statistics_of(layer):
    """Whose moments a batch normalisation layer uses inside a `MetaModel`: one of `STATISTICS`."""
    if not layer.trainable:
        return "moving"
    return getattr(layer, "statistics", "batch")


def current_scope():
    """The `Scope` that is open in this thread, or `None`."""
    return getattr(_current, "scope", None)


def normalise(layer, inputs, mask=None, weight=None, statistics="batch", on="support"):
    """`layer` applied with the moments of the inputs, or of the supports that went before.

    Args:
        inputs: `(examples, ..., channels, ...)`, any float type.
        mask: `(examples, ...)` of all axes but the last, or `None`; entries to leave out of the moments.
        weight: `(examples,)` or `None`; rows of weight 0 are left out of the moments.
        statistics: `"batch"`, or `"support"`: what the supports have left in `moving_mean` and `moving_variance`.
        on: `"support"` or `"query"`.
    """
    x = _wide(layer, inputs)
    if statistics == "support" and on == "query":
        moments = (_along(layer, x, vector(layer, name)) for name in ("moving_mean", "moving_variance"))
        return _scaled(layer, x, *moments)
    if statistics == "batch":
        return normalise_and_measure(layer, inputs, mask, weight)[0]
    mean, variance = _moments(layer, x, _rows_to_keep(layer, x, mask, weight))
    # Inside the stateless scope of a task: the queries of that task read them, nobody else.
    layer.moving_mean.assign(tf.reshape(mean, [-1]))
    layer.moving_variance.assign(tf.reshape(variance, [-1]))
    return _scaled(layer, x, mean, variance)


def normalise_and_measure(layer, inputs, mask=None, weight=None):
    """`layer` applied with the moments of the inputs: `(outputs, mean, variance)`, the latter two `(channels,)`.

    No gradient is to be taken through these two. Arguments as for `normalise`.
    """
    x = _wide(layer, inputs)
    keep = _rows_to_keep(layer, x, mask, weight)
    if keep is None and _fusable(layer, x):
        outputs, mean, variance = _fused(layer, x)
        return tf.cast(outputs, layer.compute_dtype), mean, variance
    mean, variance = _moments(layer, x, keep)
    return _scaled(layer, x, mean, variance), tf.reshape(mean, [-1]), tf.reshape(variance, [-1])


def _wide(layer, inputs):
    if getattr(layer, "renorm", False):
        raise ValueError(
            f"Layer '{layer.name}' has `renorm=True`: it corrects batch moments towards moving ones, which tasks do "
            "not share. Use `keras_maml.layers.BatchNormalization('moving')`, or `renorm=False`."
        )
    return tf.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))


def _scaled(layer, x, mean, variance):
    scale = tf.math.rsqrt(variance + tf.cast(layer.epsilon, x.dtype))
    gamma, beta = vector(layer, "gamma"), vector(layer, "beta")
    if gamma is not None:
        scale *= _along(layer, x, gamma)
    outputs = (x - mean) * scale
    if beta is not None:
        outputs += _along(layer, x, beta)
    return tf.cast(outputs, layer.compute_dtype)


def vector(layer, name):
    """A weight, `(channels,)` or `None`; of the inner step that runs, where the layer has a row for each."""
    variable = getattr(layer, name)
    if variable is None:
        return None
    value = tf.convert_to_tensor(variable)
    return value if value.shape.rank == 1 else tf.gather(value, layer.row())


def _along(layer, x, vector):
    """`vector: (channels,)` shaped to broadcast along the layer's axis of `x`."""
    shape = [1] * x.shape.rank
    shape[layer.axis] = -1
    return tf.reshape(tf.cast(vector, x.dtype), shape)


def _moments(layer, x, keep):
    axes = [axis for axis in range(x.shape.rank) if axis != layer.axis % x.shape.rank]
    if keep is None:
        return exact_moments(x, axes, keepdims=True)
    # `where` before the product: a padded row may hold anything, and 0 * inf is NaN.
    keep = tf.broadcast_to(keep, tf.shape(x))
    count = tf.reduce_sum(tf.cast(keep, x.dtype), axes, keepdims=True)
    mean = tf.reduce_sum(tf.where(keep, x, 0), axes, keepdims=True) / count
    deviation = tf.where(keep, x - mean, 0)
    return mean, tf.reduce_sum(tf.square(deviation), axes, keepdims=True) / count


def _rows_to_keep(layer, x, mask, weight):
    """Boolean, broadcastable to `x`, or `None` if every entry counts."""
    if weight is None and mask is None:
        return None
    rank = x.shape.rank
    keep = tf.ones([1] * rank, tf.bool)
    if mask is not None:
        keep &= tf.reshape(mask, tf.concat([tf.shape(mask), tf.ones(rank - len(mask.shape), tf.int32)], 0))
    if weight is not None:
        if x.shape[0] is not None and weight.shape[0] is not None and x.shape[0] != weight.shape[0]:
            raise ValueError(
                f"Layer '{layer.name}' normalises {x.shape[0]} rows, and the weights are for {weight.shape[0]} "
                "examples: the model merges examples with another axis before it, so that padded examples cannot be "
                "left out of its moments. Use `keras.layers.LayerNormalization` there, or episodes without weights."
            )
        keep &= tf.reshape(weight > 0, [-1] + [1] * (rank - 1))
    return keep


def _fusable(layer, x):
    # The least epsilon is cuDNN's. The op takes float32 only.
    return (
        x.shape.rank == 4
        and layer.axis % 4 == 3
        and x.dtype == tf.float32
        and layer.epsilon >= 1.001e-5
    )


def _fused(layer, x):
    """One op where the composite makes several passes over memory: `(outputs, mean, variance)`."""
    channels = x.shape[-1]
    gamma, beta = vector(layer, "gamma"), vector(layer, "beta")
    gamma = tf.ones([channels]) if gamma is None else tf.cast(gamma, tf.float32)
    beta = tf.zeros([channels]) if beta is None else tf.cast(beta, tf.float32)
    return batch_normalization_and_moments(x, gamma, beta, layer.epsilon)


def exact_moments(x, axes, shift=None, keepdims=False, name=None):
    """`tf.nn.moments` with its gradient right to second order: nothing is stopped at the mean.

    Args:
        x: float tensor.
        axes: axes to reduce.
        shift: unused, as in `tf.nn.moments`.
        keepdims: whether the reduced axes stay, with length 1.
        name: unused.
    """
    del shift, name
    values = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    mean = tf.reduce_mean(values, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(values - mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def _route_batch_normalization(stock):
    @functools.wraps(stock)
    def call(self, inputs, training=None, mask=None):
        scope = current_scope()
        if scope is None:
            return stock(self, inputs, training=training, mask=mask)
        statistics = statistics_of(self)
        if statistics == "moving":
            if training and self.trainable and scope.weight is not None:
                keep = _rows_to_keep(self, inputs, mask, scope.weight)
                mask = tf.broadcast_to(keep, tf.shape(inputs))[..., 0]
            return stock(self, inputs, training=training, mask=mask)
        return normalise(self, inputs, mask, scope.weight, statistics, scope.on)

    return call


def _route_moments(stock):
    @functools.wraps(stock)
    def moments(x, axes, shift=None, keepdims=False, name=None):
        chosen = stock if current_scope() is None else exact_moments
        return chosen(x, axes, shift=shift, keepdims=keepdims, name=name)

    return moments


def _route_bias_add(stock):
    @functools.wraps(stock)
    def bias_add(value, bias, data_format=None, name=None):
        if current_scope() is None or (data_format or "N").startswith("NC"):
            return stock(value, bias, data_format=data_format, name=name)
        return tf.add(value, bias, name=name)

    return bias_add


def _route_max_pool(stock):
    @functools.wraps(stock)
    def max_pool(input, ksize, strides, padding, data_format=None, name=None):
        size = tuple(ksize) if isinstance(ksize, (list, tuple)) else ()
        plain = current_scope() is None or data_format not in (None, "NHWC") or len(size) != 2
        if plain or not _windows_apart(size, strides, padding) or input.dtype != tf.float32:
            return stock(input, ksize, strides, padding, data_format=data_format, name=name)
        return max_pooling(input, size)

    return max_pool


def pools_exactly(layer):
    """Whether a max-pooling layer has second derivatives of ours inside an `adaptation_scope`, exact under XLA too."""
    return (
        isinstance(layer, keras.layers.MaxPooling2D)
        and layer.compute_dtype == "float32"
        and _windows_apart(tuple(layer.pool_size), layer.strides, layer.padding)
    )


def _windows_apart(size, strides, padding):
    # TensorFlow also takes one number for the strides, and a list of paddings.
    return isinstance(strides, (list, tuple)) and size == tuple(strides) and str(padding).upper() == "VALID"


def _route_once():
    # Importing the module a second time (a reload) must not wrap the wrappers.
    if not hasattr(keras.layers.BatchNormalization.call, "__wrapped__"):
        tf.nn.moments = _route_moments(tf.nn.moments)
        tf.nn.bias_add = _route_bias_add(tf.nn.bias_add)
        tf.nn.max_pool = _route_max_pool(tf.nn.max_pool)
        keras.layers.BatchNormalization.call = _route_batch_normalization(
            keras.layers.BatchNormalization.call
        )


_route_once()
