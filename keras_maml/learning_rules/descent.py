"""Gradient descent at a given rate, and its kin with momentum or a pull."""

import keras
import tensorflow as tf

from keras_maml.arguments import check_flag, check_fraction, check_positive
from keras_maml.learning_rules.base import LearningRule


@keras.saving.register_keras_serializable("keras_maml")
class SGD(LearningRule):
    """Gradient descent: `p <- p - learning_rate * g`.

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400
    """

    def step(self, params, gradients, state, index):
        return self.descend(params, gradients, index), state


@keras.saving.register_keras_serializable("keras_maml")
class Momentum(LearningRule):
    """Gradient descent with momentum, from a standstill in every task.

    ```
    v <- momentum * v + g
    p <- p - learning_rate * v                       # nesterov=False
    p <- p - learning_rate * (g + momentum * v)      # nesterov=True
    ```

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`.
        momentum: share of the velocity that is kept, in `[0, 1)`.
        nesterov: whether to look ahead.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", ICML
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, nesterov=False, clipnorm=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        check_fraction("momentum", momentum)
        check_flag("nesterov", nesterov)
        self.momentum = momentum
        self.nesterov = nesterov

    def init(self, params):
        return [tf.zeros_like(p) for p in params]

    def step(self, params, gradients, state, index):
        velocity = [self.momentum * v + g for v, g in zip(state, gradients, strict=True)]
        moves = velocity
        if self.nesterov:
            moves = [g + self.momentum * v for g, v in zip(gradients, velocity, strict=True)]
        return self.descend(params, moves, index), velocity

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable("keras_maml")
class ProximalSGD(LearningRule):
    """Gradient descent on the loss plus a pull towards the start.

    ```
    p <- p - learning_rate * (g + strength * (p - p_0))
    ```

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule`; above `2 / (largest curvature +
            strength)` it diverges.
        strength: weight of `|p - p_0|^2 / 2`, positive.
        clipnorm: greatest global norm of the gradient of the loss (not of the pull), or `None`.

    References:
        - Rajeswaran et al. 2019, "Meta-learning with implicit gradients", arXiv:1909.04630
    """

    def __init__(self, learning_rate=0.01, strength=1.0, clipnorm=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        check_positive("strength", strength)
        self.strength = strength

    def init(self, params):
        return params  # p_0, the anchor

    def step(self, params, gradients, state, index):
        pulled = zip(params, gradients, state, strict=True)
        moves = [g + self.strength * (p - anchor) for p, g, anchor in pulled]
        return self.descend(params, moves, index), state

    def get_config(self):
        return {**super().get_config(), "strength": self.strength}
