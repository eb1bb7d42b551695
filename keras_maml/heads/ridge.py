"""Output layers that start from ridge regression."""

import numbers

import keras
import numpy as np
import tensorflow as tf

from keras_maml.arguments import check_flag, check_positive
from keras_maml.heads.base import ComputedHead
from keras_maml.linear_solvers import cholesky_solve


@keras.saving.register_keras_serializable("keras_maml")
class RidgeHead(ComputedHead):
    """The output layer starts from ridge regression of the one-hot labels Y on the support features F, its inputs.

    ```
    W = argmin sum_n weight_n |f_n W - y_n|^2 + regularization |W|^2
      = (F' F + regularization I)^-1 F' Y        # features x features, where there are more supports than features
      = F' (F F' + regularization I)^-1 Y        # supports x supports, otherwise
    logits = scale f W + bias
    ```

    with rows of F and Y times `sqrt(weight)` in the last two lines. `Algorithm(..., steps=0, start=RidgeHead())` is
    R2-D2. F has no column of ones, which the published code appends; it also divides F and Y by the square root of the
    number of supports, so that its `regularization` is that of here divided by their number. The form is chosen when a
    step is traced; where the number of supports is not known then, it is the last one. Systems are solved by Cholesky
    factors, with what float rounding would lose, the trace times the machine epsilon, added to `regularization`.

    Regularization, scale and bias are meta-learned with the model's weights, the first two as logarithms. The bias is
    the same for all classes: the softmax cross-entropy does not see it, so that it is left out by default.

    A class without supports has weights of 0 and the lowest bias, see `PrototypeHead`. The output layer must be a
    `Dense` with a bias.

    Args:
        regularization: where it starts, positive; compare it with the squared length of the features.
        scale: where it starts, positive. Regression gives logits between 0 and 1, which a softmax takes for
            almost no difference.
        bias: where it starts, a number, or `None` for no bias.
        learned: whether the three are meta-learned; else they stay as they are.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers", arXiv:1805.08136
    """

    vectorizes = False  # XLA compiles factorisations slowly

    def __init__(self, regularization=1.0, scale=10.0, bias=None, learned=True, **kwargs):
        super().__init__(**kwargs)
        check_positive("regularization", regularization)
        check_positive("scale", scale)
        number = isinstance(bias, numbers.Real) and not isinstance(bias, bool) and abs(bias) < float("inf")
        if bias is not None and not number:
            raise ValueError(f"`bias` must be a number, or None. Received: bias={bias!r}.")
        check_flag("learned", learned)
        self.regularization = regularization
        self.scale = scale
        self.bias = bias
        self.learned = learned
        self.log_regularization = self.log_scale = self.shift = None
        if learned:
            self.log_regularization = self.log_weight("regularization", regularization)
            self.log_scale = self.log_weight("scale", scale)
        if learned and bias is not None:
            self.shift = self.add_weight(
                name="bias", shape=(), initializer=lambda shape, dtype: tf.constant(bias, dtype, shape)
            )

    def compute(self, features, y, weight):
        dtype = features.dtype
        # The root before the product: of a padded row nothing is left on either side.
        root = tf.sqrt(weight)[:, tf.newaxis]
        regularization = self.positive(self.log_regularization, self.regularization, dtype)
        kernel = ridge_regression(root * features, root * y, regularization)
        bias = tf.cast(0.0 if self.bias is None else self.bias if self.shift is None else self.shift, dtype)
        return self.positive(self.log_scale, self.scale, dtype) * kernel, bias

    def get_config(self):
        settings = ("regularization", "scale", "bias", "learned")
        return {**super().get_config(), **{name: getattr(self, name) for name in settings}}


def ridge_regression(x, y, regularization):
    """`argmin |x W - y|^2 + regularization |W|^2`, in the smaller of its two forms.

    Args:
        x: `(examples, features)`; the number of examples may be dynamic.
        y: `(examples, outputs)`.
        regularization: positive scalar.

    Returns:
        `(features, outputs)`.
    """

    def solve(matrix, right_side):
        ridge = regularization + tf.linalg.trace(matrix) * float(np.finfo(x.dtype.as_numpy_dtype).eps)
        return cholesky_solve(matrix + ridge * tf.eye(tf.shape(matrix)[0], dtype=x.dtype), right_side)

    def primal():
        return solve(tf.matmul(x, x, transpose_a=True), tf.matmul(x, y, transpose_a=True))

    def dual():
        return tf.matmul(x, solve(tf.matmul(x, x, transpose_b=True), y), transpose_a=True)

    examples, features = x.shape
    # Not `tf.cond`, whose gradient `vectorized_map` cannot take. Both are as exact: the conditions of their matrices
    # are the same.
    return primal() if examples is not None and examples > features else dual()
