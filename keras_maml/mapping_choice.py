"""Which mapping runs the tasks of a batch: chosen by what the model contains, and what stands against XLA."""

import math

import keras
import tensorflow as tf

from keras_maml.layers import pools_exactly
from keras_maml.selection import flatten_layers
from keras_maml.task_mapping import Parallel, Vectorized

# More gradients of tasks than this fall out of the cache: a meta-step of 32 tasks and 528,000 weights takes 1.5 times
# as long at once (64 MiB) as in chunks, one of 81,000 weights (10 MiB) 1.3 times. From 1 to 8 MiB there was no trend.
STACKED_BYTES = 8 * 2**20
LARGE_EMBEDDING = 100_000  # weights
_KINDS = (
    *("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    *("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
    *("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
)
CONVOLUTIONS = tuple(getattr(keras.layers, kind) for kind in _KINDS)
ATTENTION = (
    *(keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention),
    *(keras.layers.Attention, keras.layers.AdditiveAttention),
)
# XLA packs TensorFlow's second derivative of a max-pooling with its position into one word, which rounds it to
# bfloat16: about 1 % error of a meta-gradient (TensorFlow 2.21; average pooling is exact, and so is the first order).
ROUGH_UNDER_XLA = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)


def choose(model, variables):
    """The mapping for a model, and the reason.

    - Convolutions, max-pooling and recurrent layers: `Parallel`. With filters for each task, a vectorised convolution
      is a loop of TensorFlow's or slow code of XLA's; the loop over time has no vectorised gradient.
    - Dense layers: `Vectorized` under XLA, if the gradients of two tasks or more fit into
      `STACKED_BYTES`, else `Parallel`: with that many weights the products are large enough by themselves.
    - Attention, or a large embedding: `Parallel`. A Transformer encoder (133,000 weights, 8 tasks of 25 + 75 texts of
      32 words) takes 0.8 of the time in parallel after `set_threads`, 1.1 without that, and a third of the time to
      the first step and 0.6 of the memory either way. Smaller batches may gain by `task_mapping="vectorized"`.

    Time of a meta-step as a ratio to `Parallel` with TensorFlow's default threads, MAML with one inner step, 5 supports
    and 25 queries, two busy cores; in brackets `Parallel` and `Vectorized` after `keras_maml.set_threads`:

    | model | weights | tasks | `Vectorized` |
    |---|---|---|---|
    | dense, two layers | 13,000 | 32 | 0.27 |
    | dense, two layers | 81,000 | 32 | 0.74 (1.04, 0.68) |
    | dense, two layers | 528,000 | 32 | 0.77 (0.57, 0.61) |
    | dense, two layers | 2.9 million | 16 | 1.05 in chunks of 4 |
    | Transformer encoder, two layers | 80,000 | 16 | 0.81 |
    | the same, vocabulary 8,000, 25 + 75 examples | 579,000 | 8 | 1.05 (0.76, 0.87) |

    XLA doubles the time to the first step. On a GPU the choice is the same, for the same reasons, and not measured.

    Args:
        model: a built Keras model.
        variables: the meta-learned variables, whose gradients a vectorised mapping stacks.

    Returns:
        `(mapping, reason)`.
    """
    layers = flatten_layers(model)
    slow = [layer.name for layer in layers if isinstance(layer, (*CONVOLUTIONS, *ROUGH_UNDER_XLA, keras.layers.RNN))]
    if slow:
        return Parallel(), f"layer '{slow[0]}' convolves, pools or recurs, which is slow as one op of many tasks"
    if any(type(layer).__module__.split(".")[0] not in ("keras", "keras_maml") for layer in layers):
        return Parallel(), "the model has layers of its own, of which it is not known whether they vectorise"
    unfit = _not_vectorizable(model)
    if unfit:
        return Parallel(), f"TensorFlow cannot vectorise {unfit}"
    unfit = _without_jit(model)
    if unfit:
        return Parallel(), f"XLA cannot compile layer '{unfit[0]}'"
    attending = [layer.name for layer in layers if isinstance(layer, ATTENTION)]
    if attending:
        return Parallel(), f"layer '{attending[0]}' attends, which is no faster as one op of many tasks"
    embeddings = [layer for layer in layers if isinstance(layer, keras.layers.Embedding)]
    large = [layer.name for layer in embeddings if _size(layer) > LARGE_EMBEDDING]
    if large:
        return Parallel(), f"the gradient of embedding '{large[0]}' is large and mostly zeros, a stack of it more so"
    weights = sum(math.prod(v.shape) for v in variables)
    if tasks_that_fit(variables) < 2:
        return Parallel(), f"{weights:,} weights: the gradients of two tasks do not fit into a cache"
    reason = f"no layer that convolves, recurs or attends, {weights:,} weights: an op of many tasks beats many ops"
    return Vectorized(), reason


def _size(layer):
    return sum(math.prod(v.shape) for v in layer.weights)


def tasks_that_fit(variables):
    """How many tasks have gradients of `STACKED_BYTES` together, at least 1."""
    size = sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
    return max(1, STACKED_BYTES // max(1, size))


def resolve(mapping, model, variables, jit_compile="auto", second_order=True, eager=False, start=None):
    """The mapping that runs, of the one asked for: chosen, made to fit in memory, and without XLA where need be.

    Args:
        mapping: a `TaskMapping`, or `None` for `"auto"`.
        model: a built Keras model.
        variables: the meta-learned variables.
        jit_compile: what `compile` was asked for: `"auto"`, `True` or `False`.
        second_order: whether second derivatives are taken.
        eager: whether steps run eagerly.
        start: a `Start` that does not vectorise well, or `None`.

    Returns:
        `(mapping, reason)`.
    """
    if mapping is not None:
        reason = "chosen by `task_mapping`"
    elif eager:
        mapping, reason = Parallel(), "steps are eager"
    elif start is not None:
        mapping, reason = Parallel(), f"`{type(start).__name__}` factorises matrices, which is slow under XLA"
    else:
        mapping, reason = choose(model, variables)
        if tf.config.list_physical_devices("GPU"):
            reason += " (measured on CPUs, not on a GPU)"
    if type(mapping) is Vectorized and mapping.tasks_at_once is None:
        mapping = Vectorized(mapping.jit_compile, tasks_that_fit(variables))
    rough, unfit = rough_under_xla(model) if second_order else [], _without_jit(model)
    against = (
        "`jit_compile=False`"
        if jit_compile is False
        else f"XLA rounds the second derivatives of layer '{rough[0]}'"
        if rough
        else f"XLA cannot compile layer '{unfit[0]}'"
        if unfit
        else None
    )
    plain = mapping.without_xla()
    if against and plain is not mapping:
        return plain, f"{reason}, {against}"
    return mapping, reason


def explain(mapping, reason, step):
    """What `MetaModel.explain_task_mapping` says of the result of `resolve`; `step` as in `TaskMapping.describe`."""
    return f"{type(mapping).__name__}: {reason}; {mapping.describe(step)}."


def check(mapping, model):
    """Refuses a mapping that cannot run a model.

    Args:
        mapping: a `TaskMapping`, or `None` for `"auto"`.
        model: a built Keras model.

    Raises:
        ValueError: if the mapping is `Vectorized` and a layer has a loop or a branch inside.
    """
    unfit = _not_vectorizable(model)
    if isinstance(mapping, Vectorized) and unfit:
        raise ValueError(
            f"TensorFlow cannot vectorise {unfit} of model '{model.name}'. Received: "
            f"task_mapping={type(mapping).__name__}. Use `task_mapping='parallel'` or 'auto'; a recurrent layer of few "
            "time steps can be made with `unroll=True`."
        )


def rough_under_xla(model):
    """Names of layers whose second derivatives XLA rounds to bfloat16: max-pooling where windows overlap or are padded,
    or are not of images."""
    pools = [layer for layer in flatten_layers(model) if isinstance(layer, ROUGH_UNDER_XLA)]
    return [layer.name for layer in pools if not pools_exactly(layer)]


def convolutions(model):
    """Names of layers that convolve."""
    return [layer.name for layer in flatten_layers(model) if isinstance(layer, CONVOLUTIONS)]


def _without_jit(model):
    return [layer.name for layer in flatten_layers(model) if not getattr(layer, "supports_jit", True)]


def _not_vectorizable(model):
    """What in a model has no vectorised gradient (TensorFlow 2.21), in words; `None` if nothing is known."""
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.RNN) and not layer.unroll:
            return f"the gradient of the loop over time steps in layer '{layer.name}'"
        if isinstance(layer, keras.layers.SpectralNormalization):
            return f"the gradient of the branch in layer '{layer.name}'"
    return None
