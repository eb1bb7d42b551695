"""Context parameters: a few numbers that tell a model which task it is in, and that alone adapt."""

import keras
from keras import ops

MODES = ("concatenate", "modulate")


@keras.saving.register_keras_serializable("keras_maml")
class ContextParameters(keras.layers.Layer):
    """Joins its inputs with a trainable vector c, the context, the same for all examples of a task.

    ```
    y = [x, c]                                        # mode="concatenate", along the last axis
    y = x * (1 + scale) + shift,                      # mode="modulate", scale and shift for each channel
        [scale, shift] = c W + b
    ```

    As `CAVIA` trains it, c is 0 at the start of every task and is all that adapts, so that an adapted model is told by
    `size` numbers. All other weights, W and b among them, are meta-learned. With c = 0 and b = 0, as at first,
    `"modulate"` changes nothing.

    Args:
        size: length of the context, at least 1.
        mode: `"concatenate"`, best before the first `Dense`, or `"modulate"`, also known as FiLM, best after a
            convolution.
        **kwargs: arguments of `keras.layers.Layer`.

    Input shape: `(examples, ..., channels)`. Output shape: the same, with `size` more channels for `"concatenate"`.

    Raises:
        ValueError: if an argument is out of range, or if the number of channels is not known.

    References:
        - Zintgraf et al. 2019, "Fast context adaptation via meta-learning", arXiv:1810.03642
        - `"modulate"`: Perez et al. 2018, "FiLM: visual reasoning with a general conditioning layer", arXiv:1709.07871
    """

    def __init__(self, size, mode="concatenate", **kwargs):
        super().__init__(**kwargs)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"`size` must be an integer of at least 1. Received: size={size!r}.")
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}. Received: mode={mode!r}.")
        self.size = size
        self.mode = mode
        self.supports_masking = True

    def build(self, input_shape):
        channels = input_shape[-1]
        if len(input_shape) < 2 or channels is None:
            raise ValueError(
                f"Layer '{self.name}' needs inputs (examples, ..., channels) with a known number of channels. Received "
                f"inputs of shape {tuple(input_shape)}."
            )
        self.context = self.add_weight(name="context", shape=(self.size,), initializer="zeros")
        if self.mode == "modulate":
            # W must not start at 0: through it alone the context gets a gradient.
            self.kernel = self.add_weight(name="kernel", shape=(self.size, 2 * channels))
            self.bias = self.add_weight(name="bias", shape=(2 * channels,), initializer="zeros")

    def call(self, inputs):
        context = ops.convert_to_tensor(self.context)
        if self.mode == "concatenate":
            rows = ops.broadcast_to(context, (*ops.shape(inputs)[:-1], self.size))
            return ops.concatenate([inputs, ops.cast(rows, inputs.dtype)], -1)
        scale, shift = ops.split(ops.squeeze(ops.matmul(context[None], self.kernel), 0) + self.bias, 2)
        return inputs * (1 + scale) + shift

    def compute_output_shape(self, input_shape):
        more = self.size if self.mode == "concatenate" else 0
        return (*input_shape[:-1], input_shape[-1] + more)

    def get_config(self):
        return {**super().get_config(), "size": self.size, "mode": self.mode}
