"""Meta-Curvature: gradients transformed by meta-learned matrices, one for every axis of a variable."""

import math

import keras
import tensorflow as tf

from keras_maml.learning_rules.base import LearningRule


@keras.saving.register_keras_serializable("keras_maml")
class MetaCurvature(LearningRule):
    """Gradient descent along gradients that are transformed by a meta-learned matrix for every axis of a variable.

    ```
    p <- p - learning_rate * M(g),    M(g) = g x_1 M_1 x_2 M_2 ... (mode products), M_1 g M_2^T for a dense kernel
    ```

    All matrices start at the identity, where the rule is `SGD`. The axes of the window of a convolution kernel
    `(height, width, inputs, outputs)` are one mode, so that a kernel has three matrices, as in the paper.

    An axis of n has a matrix of n x n: that of a flattened image or a vocabulary would be larger than the model, and
    gets a factor for each index, a diagonal matrix, instead.

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`.
        clipnorm: greatest global norm of the inner gradient before it is transformed, or `None`.
        largest_matrix: greatest size of a mode that has a full matrix, at least 0; 0 makes all of them diagonal.

    References:
        - Park and Oliva 2019, "Meta-Curvature", arXiv:1902.03356
    """

    learned = True

    def __init__(self, learning_rate=0.01, clipnorm=None, largest_matrix=1024, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        if isinstance(largest_matrix, bool) or not isinstance(largest_matrix, int) or largest_matrix < 0:
            raise ValueError(
                f"`largest_matrix` must be an integer of at least 0. Received: largest_matrix={largest_matrix!r}."
            )
        self.largest_matrix = largest_matrix

    def build(self, variables, steps):
        self.curvatures = [
            [self._curvature(size, v.dtype, f"curvature_{i}_{mode}") for mode, size in enumerate(_modes(v.shape))]
            for i, v in enumerate(variables)
        ]

    def _curvature(self, size, dtype, name):
        full = size <= self.largest_matrix
        shape, start = ((size, size), "identity") if full else ((size,), "ones")
        return self.add_weight(shape=shape, dtype=dtype, initializer=start, name=name)

    def step(self, params, gradients, state, index):
        pairs = zip(gradients, self.curvatures, strict=True)
        return self.descend(params, [_transform(g, matrices) for g, matrices in pairs], index), state

    def get_config(self):
        return {**super().get_config(), "largest_matrix": self.largest_matrix}


def _modes(shape):
    """Sizes of the modes of a variable: all but the last two axes together, if there are more than three."""
    shape = tuple(shape) or (1,)
    return shape if len(shape) <= 3 else (math.prod(shape[:-2]), *shape[-2:])


def _transform(gradient, matrices):
    """Mode products of a gradient with a matrix, or the diagonal of one, for each of its modes."""
    result = tf.reshape(gradient, _modes(gradient.shape))
    # Each product takes the first mode and leaves its own as the last, so that in the end all are in place again.
    for matrix in matrices:
        matrix = tf.convert_to_tensor(matrix)
        if len(matrix.shape) == 2:
            result = tf.tensordot(result, matrix, [[0], [1]])
        else:
            result = tf.transpose(result, [*range(1, len(result.shape)), 0]) * matrix
    return tf.reshape(result, gradient.shape)
