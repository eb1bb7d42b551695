"""What would train wrongly or not at all: layers whose second derivatives TensorFlow gets wrong or does not have, and
weights without a meta-gradient."""

import warnings

import keras
import tensorflow as tf

from keras_maml.layers import PerStepBatchNormalization
from keras_maml.mapping_choice import convolutions, rough_under_xla
from keras_maml.selection import flatten_layers


def prepare_second_order(model):
    """Warns of layers that give wrong second-order meta-gradients, and takes recurrent layers off cuDNN.

    - Bilinear `UpSampling2D`: the gradient of TensorFlow's bilinear resizing is a constant to TensorFlow, so that its
      second-order term is silently dropped.
    - `LSTM` and `GRU` on a GPU: cuDNN's kernels have no second derivative. `use_cudnn` is set to `False` in the model's
      own layers: a switch for the time of a call would be seen by other threads.

    Args:
        model: a built model.
    """
    layers = flatten_layers(model)
    bilinear = [
        layer.name
        for layer in layers
        if isinstance(layer, keras.layers.UpSampling2D) and layer.interpolation == "bilinear"
    ]
    if bilinear:
        warnings.warn(
            f"TensorFlow drops the second derivatives of bilinear resizing: meta-gradients through {bilinear} lack a "
            "term. Use `interpolation='nearest'`, or a first-order algorithm such as `keras_maml.FOMAML()`.",
            stacklevel=4,
        )
    on_cudnn = [layer for layer in layers if getattr(layer, "use_cudnn", False)]
    if on_cudnn and tf.config.list_physical_devices("GPU"):
        for layer in on_cudnn:
            layer.use_cudnn = False
        warnings.warn(
            f"cuDNN has no second derivatives: layers {[layer.name for layer in on_cudnn]} now run without it "
            "(`use_cudnn=False`).",
            stacklevel=4,
        )


def check_rows(model, algorithm):
    """Refuses layers with weights for each inner step where some of them would never learn.

    Args:
        model: a built model.
        algorithm: an `Algorithm`.

    Raises:
        ValueError: for weights of more steps than are made in training, and for a meta-gradient that moves what adapts
            only.
    """
    steps, estimator = algorithm.steps, algorithm.meta_gradient
    for layer in flatten_layers(model):
        if getattr(layer, "weights_of_steps", ()) and not estimator.differentiates:
            raise ValueError(
                f"`{type(estimator).__name__}` gives no gradient for weights that do not adapt, as those that layer "
                f"'{layer.name}' has for each inner step. Make the layer with `weights_per_step=False`, or use "
                "`Unrolled()` or `FirstOrder()`."
            )
        if not isinstance(layer, PerStepBatchNormalization):
            continue
        if steps == 0:
            raise ValueError(
                f"Layer '{layer.name}' of model '{model.name}' has rows for each inner step, and with `steps=0` there "
                "are none. Use `keras_maml.layers.BatchNormalization`."
            )
        if layer.steps > steps:
            raise ValueError(
                f"Layer '{layer.name}' of model '{model.name}' is made for {layer.steps} inner steps, and the "
                f"algorithm makes {steps} in training: rows for later steps would never learn. Make the layer with "
                f"`steps={steps}`, or the algorithm with `steps={layer.steps}` (`evaluation_steps` may be any)."
            )


def check_learned(model, variables):
    """Refuses to train where nothing is meta-learned.

    Args:
        model: the base model.
        variables: what is meta-learned.

    Raises:
        ValueError: if there are none.
    """
    if not variables:
        raise ValueError(
            f"There is nothing to meta-learn: model '{model.name}' has no trainable weights but those that a start "
            "sets anew in every task. Evaluate it as it is, or let layers train (`trainable = True`), or add some, "
            "before making the MetaModel."
        )


def check_gradients(variables, gradients, estimator):
    """Refuses weights that the outer loss does not depend on.

    Args:
        variables: what is meta-learned.
        gradients: their meta-gradients, aligned; `None` for none.
        estimator: a `MetaGradient`, for the message.

    Raises:
        ValueError: naming the weights.
    """
    missing = [v.path for v, g in zip(variables, gradients, strict=True) if g is None]
    if missing:
        raise ValueError(
            f"These weights get no meta-gradient from `{type(estimator).__name__}`: {missing}. The loss does not "
            "depend on them. Freeze their layers (`trainable = False`) before making the MetaModel, or use them in the "
            "model."
        )


def jit_compile(model, asked, second_order):
    """What `compile(jit_compile=asked)` should be for a model: `"auto"` is off where XLA is rough.

    Args:
        model: the base model.
        asked: `True`, `False` or `"auto"`.
        second_order: whether second derivatives are taken at all.
    """
    rough = rough_under_xla(model) if second_order else []
    if rough and asked == "auto":
        return False
    if not asked or asked == "auto":
        return asked
    if rough:
        warnings.warn(
            f"XLA rounds the second derivatives of layer '{rough[0]}' to bfloat16: meta-gradients are off by about "
            "1 %. Use `jit_compile=False`, strided convolutions or average pooling.",
            stacklevel=3,
        )
    slow = convolutions(model)
    if slow and not tf.config.list_physical_devices("GPU"):
        warnings.warn(
            f"On CPUs, XLA's convolutions take more than twice the time of TensorFlow's own: layer '{slow[0]}'. Leave "
            '`jit_compile` at "auto".',
            stacklevel=3,
        )
    return asked
