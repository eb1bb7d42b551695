"""Rules that divide the gradient by the root of its squares, differentiable where it is zero.

All of them put `epsilon` inside the root, where Keras's `Adam` and `AdamW` add it to the root: the root's derivative at
0 is infinite, and weights that the supports do not reach (dead units, unused rows of an embedding) have a gradient of
0. Inside, a first step has a derivative of `rate / sqrt(epsilon)` at most, and that is at 0: 3162 times the rate with
1e-7. An `epsilon` here does what its root does in Keras's `Adam`; `RMSprop` and `Adagrad` are as in Keras.
"""

import math

import keras
import tensorflow as tf

from keras_maml.arguments import check_fraction, check_not_negative, check_positive
from keras_maml.learning_rules.base import LearningRule


@keras.saving.register_keras_serializable("keras_maml")
class Adam(LearningRule):
    """Adam, from moments of 0 in every task; step k counts from 1 here.

    ```
    m <- beta_1 * m + (1 - beta_1) * g
    v <- beta_2 * v + (1 - beta_2) * g^2
    p <- p - learning_rate * m / (1 - beta_1^k) / sqrt(v / (1 - beta_2^k) + epsilon)
    ```

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`.
        beta_1: share of the mean gradient that is kept, in `[0, 1)`.
        beta_2: share of the mean square that is kept, in `[0, 1)`.
        epsilon: added to the mean square, inside the root, positive.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Kingma and Ba 2015, "Adam: a method for stochastic optimization", arXiv:1412.6980
    """

    def __init__(self, learning_rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-7, clipnorm=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        check_fraction("beta_1", beta_1)
        check_fraction("beta_2", beta_2)
        check_positive("epsilon", epsilon)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def init(self, params):
        return [tf.zeros_like(p) for p in params], [tf.zeros_like(p) for p in params]

    def moves(self, params, gradients, means, squares, index):
        """What `learning_rate` is multiplied with, a list shaped as `params`."""
        return [
            (m / _grown(self.beta_1, index, m.dtype)) * _inverse_root(v / _grown(self.beta_2, index, v.dtype), self)
            for m, v in zip(means, squares, strict=True)
        ]

    def step(self, params, gradients, state, index):
        means, squares = state
        means = [_averaged(m, g, self.beta_1) for m, g in zip(means, gradients, strict=True)]
        squares = [_averaged(v, tf.square(g), self.beta_2) for v, g in zip(squares, gradients, strict=True)]
        moves = self.moves(params, gradients, means, squares, index)
        return self.descend(params, moves, index), (means, squares)

    def get_config(self):
        settings = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **settings}


@keras.saving.register_keras_serializable("keras_maml")
class AdamW(Adam):
    """`Adam` with decoupled weight decay: `learning_rate * weight_decay * p` is taken off beside Adam's own move.

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`.
        weight_decay: at least 0.
        beta_1: share of the mean gradient that is kept, in `[0, 1)`.
        beta_2: share of the mean square that is kept, in `[0, 1)`.
        epsilon: added to the mean square, inside the root, positive.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Loshchilov and Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101
    """

    def __init__(
        self, learning_rate=0.01, weight_decay=0.004, beta_1=0.9, beta_2=0.999, epsilon=1e-7, clipnorm=None, **kwargs
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, clipnorm, **kwargs)
        check_not_negative("weight_decay", weight_decay)
        self.weight_decay = weight_decay

    def moves(self, params, gradients, means, squares, index):
        moves = super().moves(params, gradients, means, squares, index)
        return [m + self.weight_decay * p for m, p in zip(moves, params, strict=True)]

    def get_config(self):
        return {**super().get_config(), "weight_decay": self.weight_decay}


@keras.saving.register_keras_serializable("keras_maml")
class RMSprop(LearningRule):
    """Divides by the root of a moving mean of squares, from 0 in every task.

    ```
    v <- rho * v + (1 - rho) * g^2
    p <- p - learning_rate * g / sqrt(v + epsilon)
    ```

    The first step is `1 / sqrt(1 - rho)` times as long as those of `Adam`, whose means are corrected for their start.

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`.
        rho: share of the mean square that is kept, in `[0, 1)`.
        epsilon: added to the mean square, inside the root, positive.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Hinton 2012, "Neural networks for machine learning", lecture 6
    """

    def __init__(self, learning_rate=0.01, rho=0.9, epsilon=1e-7, clipnorm=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        check_fraction("rho", rho)
        check_positive("epsilon", epsilon)
        self.rho = rho
        self.epsilon = epsilon

    def init(self, params):
        return [tf.zeros_like(p) for p in params]

    def step(self, params, gradients, state, index):
        squares = [_averaged(v, tf.square(g), self.rho) for v, g in zip(state, gradients, strict=True)]
        moves = [g * _inverse_root(v, self) for g, v in zip(gradients, squares, strict=True)]
        return self.descend(params, moves, index), squares

    def get_config(self):
        return {**super().get_config(), "rho": self.rho, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("keras_maml")
class Adagrad(LearningRule):
    """Divides by the root of the sum of squares so far in the task.

    ```
    s <- s + g^2
    p <- p - learning_rate * g / sqrt(s + epsilon)
    ```

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`.
        initial_accumulator_value: where the sum starts in every task, at least 0.
        epsilon: added to the sum, inside the root, positive.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Duchi et al. 2011, "Adaptive subgradient methods for online learning and stochastic optimization", JMLR 12
    """

    def __init__(self, learning_rate=0.01, initial_accumulator_value=0.1, epsilon=1e-7, clipnorm=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        check_not_negative("initial_accumulator_value", initial_accumulator_value)
        check_positive("epsilon", epsilon)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def init(self, params):
        return [tf.fill(p.shape, tf.constant(self.initial_accumulator_value, p.dtype)) for p in params]

    def step(self, params, gradients, state, index):
        sums = [s + tf.square(g) for s, g in zip(state, gradients, strict=True)]
        moves = [g * _inverse_root(s, self) for g, s in zip(gradients, sums, strict=True)]
        return self.descend(params, moves, index), sums

    def get_config(self):
        settings = {"initial_accumulator_value": self.initial_accumulator_value, "epsilon": self.epsilon}
        return {**super().get_config(), **settings}


def _averaged(mean, value, kept):
    return kept * mean + (1 - kept) * value


def _inverse_root(square, rule):
    return tf.math.rsqrt(square + rule.epsilon)


def _grown(beta, index, dtype):
    """`1 - beta^k` for step k = index + 1: the total weight in a mean that started at 0."""
    # `1 - beta**k` in float32 would be off by 6e-5 of itself for a first step with beta = 0.999.
    exponent = tf.cast(index + 1, dtype) * (math.log(beta) if beta else -math.inf)
    return -tf.math.expm1(exponent)
