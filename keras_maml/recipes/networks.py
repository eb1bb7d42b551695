"""The nets of few-shot papers. Every call makes a fresh one."""

import keras

from keras_maml.arguments import check_flag, check_whole
from keras_maml.layers import BatchNormalization


def conv4(
    input_shape=(28, 28, 1),
    ways=None,
    filters=64,
    pooled=False,
    averaged=True,
    scale=True,
    statistics="batch",
    head_initializer="glorot_uniform",
    negative_slope=0.0,
    **normalization,
):
    """Four blocks of a 3 x 3 convolution, batch normalisation and ReLU, each of which halves the sides.

    The layers with weights are `convolution_1`, `normalization_1` and so on, and `head`.

    Args:
        input_shape: `(height, width, channels)`, each at least 1; images in 0 to 255, best as `uint8`: the first layer
            divides by 255.
        ways: units of the output layer, which gives logits, at least 1; `None`: no output layer, a body.
        filters: of every convolution, at least 1.
        pooled: whether max-pooling over 2 x 2 pixels after the ReLU halves the sides, or a stride of 2.
        averaged: whether features are means over the pixels that are left, `(filters,)`, or all of them.
        scale: whether normalisation learns a factor for every filter beside the shift.
        statistics: whose moments normalise, see `keras_maml.layers.BatchNormalization`.
        head_initializer: of the kernel of the output layer.
        negative_slope: of the ReLU of each block, at least 0.
        **normalization: arguments of `keras.layers.BatchNormalization`, such as `momentum` and `epsilon`.

    Returns:
        A `keras.Sequential`, `(examples, height, width, channels) -> (examples, ways)` or `(examples, features)`.

    Raises:
        ValueError: for arguments out of range, or sides that four poolings leave nothing of.

    References:
        - Vinyals et al. 2016, "Matching networks for one shot learning", arXiv:1606.04080 (pooled)
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400
          (strided on Omniglot)
    """
    check_whole(1, filters=filters)
    for name, value in (("pooled", pooled), ("averaged", averaged), ("scale", scale)):
        check_flag(name, value)
    _check_images(input_shape, 16 if pooled else 1)
    model = keras.Sequential([keras.Input(input_shape, dtype="uint8"), keras.layers.Rescaling(1 / 255)], name="conv4")
    for number in range(1, 5):
        strides = 1 if pooled else 2
        model.add(keras.layers.Conv2D(filters, 3, strides, padding="same", name=f"convolution_{number}"))
        model.add(BatchNormalization(statistics, scale=scale, name=f"normalization_{number}", **normalization))
        model.add(keras.layers.ReLU(negative_slope=negative_slope))
        if pooled:
            model.add(keras.layers.MaxPooling2D(2))
    model.add(keras.layers.GlobalAveragePooling2D() if averaged else keras.layers.Flatten())
    if ways is not None:
        check_whole(1, ways=ways)
        model.add(keras.layers.Dense(ways, kernel_initializer=head_initializer, name="head"))
    return model


def pixels(input_shape=(28, 28, 1)):
    """A body without weights, whose features are the pixels divided by 255: what nothing learned is worth.

    Args:
        input_shape: `(height, width, channels)`, each at least 1.

    Returns:
        A `keras.Sequential`, `(examples, height, width, channels) -> (examples, height * width * channels)`.

    Raises:
        ValueError: for another shape.
    """
    _check_images(input_shape, 1)
    layers = [keras.Input(input_shape, dtype="uint8"), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    return keras.Sequential(layers, name="pixels")


def curve_net(width=40, kernel_initializer="glorot_uniform"):
    """Two layers of ReLU for curves, `(points, 1) -> (points, 1)`.

    Args:
        width: units of a layer, at least 1.
        kernel_initializer: of all kernels, a name or an object without weights of its own.

    Raises:
        ValueError: for a `width` out of range.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", section 5.1,
          arXiv:1703.03400
    """
    check_whole(1, width=width)

    def dense(units, activation=None):
        # An initializer draws the same numbers for every layer that shares it.
        initializer = keras.initializers.get(kernel_initializer)
        return keras.layers.Dense(units, activation, kernel_initializer=initializer.clone())

    layers = [keras.Input((1,)), dense(width, "relu"), dense(width, "relu"), dense(1)]
    return keras.Sequential(layers, name="curve_net")


def _check_images(input_shape, least):
    if not isinstance(input_shape, tuple | list) or len(input_shape) != 3:
        raise ValueError(f"`input_shape` must be (height, width, channels). Received: input_shape={input_shape!r}.")
    check_whole(least, height=input_shape[0], width=input_shape[1])
    check_whole(1, channels=input_shape[2])
