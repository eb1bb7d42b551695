"""Gradient descent at rates that are meta-learned."""

import math

import keras
import tensorflow as tf

from keras_maml.learning_rules.base import LearningRule


@keras.saving.register_keras_serializable("keras_maml")
class LearnedSGD(LearningRule):
    """Gradient descent with a meta-learned step size for every weight: `p <- p - rate * g`.

    Args:
        learning_rate: where every step size starts, a positive number.
        clipnorm: greatest global norm of the inner gradient, or `None`.
        positive: whether step sizes stay above 0: the weights of the rule, `rates`, are then read through
            `softplus(w) = log(1 + exp(w))`. Without it a step size may become negative, as in the papers.

    References:
        - Li et al. 2017, "Meta-SGD: learning to learn quickly for few-shot learning", arXiv:1707.09835
    """

    learned = True
    learns_rates = True

    def __init__(self, learning_rate=0.01, clipnorm=None, positive=False, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        if not isinstance(positive, bool):
            raise ValueError(f"`positive` must be `True` or `False`. Received: positive={positive!r}.")
        self.positive = positive

    def build(self, variables, steps):
        value = self.learning_rate
        if self.positive:
            value += math.log(-math.expm1(-value))  # `softplus` of it is the learning rate

        def start(shape, dtype):
            return tf.constant(value, dtype, shape)  # Keras's `Constant` rounds to float32

        self.rates = [
            self.add_weight(shape=self.rate_shape(v, steps), dtype=v.dtype, initializer=start, name=f"rate_{i}")
            for i, v in enumerate(variables)
        ]

    def rate_shape(self, variable, steps):
        return variable.shape

    def learned_rates(self):
        """The step sizes, a tensor for each variable, shaped by `rate_shape`."""
        rates = [tf.convert_to_tensor(rate) for rate in self.rates]
        return [tf.math.softplus(rate) for rate in rates] if self.positive else rates

    def step(self, params, gradients, state, index):
        moved = zip(params, self.learned_rates(), gradients, strict=True)
        return [p - rate * g for p, rate, g in moved], state

    def get_config(self):
        return {**super().get_config(), "positive": self.positive}


@keras.saving.register_keras_serializable("keras_maml")
class LayerwiseSGD(LearnedSGD):
    """Gradient descent with one meta-learned step size for every variable and step: `p <- p - rate[index] * g`.

    Steps beyond those of training use the last row. The paper speaks of a rate for each layer and step; as in the
    authors' code, the kernel and the bias of a layer have one each.

    Args:
        learning_rate: where every step size starts, a positive number.
        clipnorm: greatest global norm of the inner gradient, or `None`.
        positive: whether step sizes stay above 0, see `LearnedSGD`.

    References:
        - Antoniou et al. 2019, "How to train your MAML", arXiv:1810.09502
    """

    def rate_shape(self, variable, steps):
        return (steps,)

    def step(self, params, gradients, state, index):
        moved = zip(params, self.learned_rates(), gradients, strict=True)
        return [p - rate[tf.minimum(index, rate.shape[0] - 1)] * g for p, rate, g in moved], state
