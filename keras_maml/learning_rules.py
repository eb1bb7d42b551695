"""How parameters move within one task: pure functions from parameters and gradients to new parameters."""

import numbers

import keras
import tensorflow as tf


class LearningRule(keras.layers.Layer):
    """Base class of inner update rules.

    A rule is a Keras layer so that it may own weights (learned step sizes), which are meta-learned with those of the
    model. It sees the adapting parameters only. A new rule implements `step`, and `init` if it keeps a state from one
    step to the next.

    Args:
        learning_rate: size of an inner step, positive.
        clipnorm: if given, the inner gradient of a task is scaled down to this global norm where it is longer.
    """

    learned = False  # whether `build` makes weights that are meta-learned

    def __init__(self, learning_rate=0.01, clipnorm=None, **kwargs):
        # Inner updates are made in the precision of the weights, whatever the global policy.
        super().__init__(**{"dtype": "float32", **kwargs})
        _check_positive("learning_rate", learning_rate)
        if clipnorm is not None:
            _check_positive("clipnorm", clipnorm)
        self.learning_rate = learning_rate
        self.clipnorm = clipnorm

    def build(self, variables, steps):
        """Makes the rule's weights.

        Args:
            variables: the adapting variables of the model.
            steps: number of inner steps in training, the number of rows of weights learned for each step.
        """

    def init(self, params):
        """State before the first step: any nested structure of tensors."""
        return ()

    def step(self, params, gradients, state, index):
        """One inner update.

        Args:
            params: list of tensors, the adapting parameters.
            gradients: list of tensors, shaped as `params`, already clipped.
            state: what `init` or the step before returned.
            index: number of the step, from 0: a Python integer, or an int32 scalar tensor where many steps run in a
                loop. So no `if` on it: `tf.where`, `tf.gather`.

        Returns:
            `(params, state)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `step`.")

    def clip(self, gradients):
        """`g * min(1, clipnorm / |g|)` over all gradients together; a zero gradient stays zero, with derivative 1."""
        if self.clipnorm is None:
            return gradients
        squared = tf.add_n([tf.reduce_sum(tf.square(g)) for g in gradients])
        # The root of a maximum, not the maximum of a root: the root's derivative at zero is infinite.
        scale = self.clipnorm * tf.math.rsqrt(tf.maximum(squared, self.clipnorm**2))
        return [g * scale for g in gradients]

    def __setattr__(self, name, value):
        # Keras (3.15) keeps the arguments of `build` for its configuration. They are variables of the model, which the
        # rule would then own, save and freeze as well; and no configuration can hold them.
        super().__setattr__(name, None if name == "_build_shapes_dict" else value)

    def get_config(self):
        return {**super().get_config(), "learning_rate": self.learning_rate, "clipnorm": self.clipnorm}


def _check_positive(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not value > 0:
        raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}.")


@keras.saving.register_keras_serializable("keras_maml")
class SGD(LearningRule):
    """Gradient descent: `p <- p - learning_rate * g`.

    Args:
        learning_rate: size of an inner step, positive.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400
    """

    def step(self, params, gradients, state, index):
        return [p - self.learning_rate * g for p, g in zip(params, gradients, strict=True)], state


@keras.saving.register_keras_serializable("keras_maml")
class Momentum(LearningRule):
    """Gradient descent with momentum, from a standstill in every task.

    ```
    v <- momentum * v + g
    p <- p - learning_rate * v                       # nesterov=False
    p <- p - learning_rate * (g + momentum * v)      # nesterov=True
    ```

    Args:
        learning_rate: size of an inner step, positive.
        momentum: share of the velocity that is kept, in `[0, 1)`.
        nesterov: whether to look ahead.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", ICML
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, nesterov=False, clipnorm=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        if not isinstance(momentum, numbers.Real) or not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1). Received: momentum={momentum!r}.")
        self.momentum = momentum
        self.nesterov = nesterov

    def init(self, params):
        return [tf.zeros_like(p) for p in params]

    def step(self, params, gradients, state, index):
        velocity = [self.momentum * v + g for v, g in zip(state, gradients, strict=True)]
        moves = velocity
        if self.nesterov:
            moves = [g + self.momentum * v for g, v in zip(gradients, velocity, strict=True)]
        return [p - self.learning_rate * m for p, m in zip(params, moves, strict=True)], velocity

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable("keras_maml")
class LearnedSGD(LearningRule):
    """Gradient descent with a meta-learned step size for every weight: `p <- p - rate * g`.

    Args:
        learning_rate: where every step size starts, positive.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Li et al. 2017, "Meta-SGD: learning to learn quickly for few-shot learning", arXiv:1707.09835
    """

    learned = True

    def build(self, variables, steps):
        def start(shape, dtype):
            return tf.constant(self.learning_rate, dtype, shape)  # Keras's `Constant` rounds to float32

        self.rates = [
            self.add_weight(shape=self.rate_shape(v, steps), dtype=v.dtype, initializer=start, name=f"rate_{i}")
            for i, v in enumerate(variables)
        ]

    def rate_shape(self, variable, steps):
        return variable.shape

    def step(self, params, gradients, state, index):
        moved = zip(params, self.rates, gradients, strict=True)
        return [p - rate * g for p, rate, g in moved], state


@keras.saving.register_keras_serializable("keras_maml")
class LayerwiseSGD(LearnedSGD):
    """Gradient descent with one meta-learned step size for every variable and step: `p <- p - rate[index] * g`.

    Steps beyond those of training use the last row.

    Args:
        learning_rate: where every step size starts, positive.
        clipnorm: greatest global norm of the inner gradient, or `None`.

    References:
        - Antoniou et al. 2019, "How to train your MAML", arXiv:1810.09502
    """

    def rate_shape(self, variable, steps):
        return (steps,)

    def step(self, params, gradients, state, index):
        moved = zip(params, self.rates, gradients, strict=True)
        return [p - rate[tf.minimum(index, rate.shape[0] - 1)] * g for p, rate, g in moved], state


@keras.saving.register_keras_serializable("keras_maml")
class ProximalSGD(LearningRule):
    """Gradient descent on the loss plus a pull towards the start.

    ```
    p <- p - learning_rate * (g + strength * (p - p_0))
    ```

    Args:
        learning_rate: size of an inner step, positive; above `2 / (largest curvature + strength)` it diverges.
        strength: weight of `|p - p_0|^2 / 2`, positive.
        clipnorm: greatest global norm of the gradient of the loss (not of the pull), or `None`.

    References:
        - Rajeswaran et al. 2019, "Meta-learning with implicit gradients", arXiv:1909.04630
    """

    def __init__(self, learning_rate=0.01, strength=1.0, clipnorm=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        _check_positive("strength", strength)
        self.strength = strength

    def init(self, params):
        return params  # p_0, the anchor

    def step(self, params, gradients, state, index):
        pulled = zip(params, gradients, state, strict=True)
        moves = [g + self.strength * (p - anchor) for p, g, anchor in pulled]
        return [p - self.learning_rate * m for p, m in zip(params, moves, strict=True)], state

    def get_config(self):
        return {**super().get_config(), "strength": self.strength}
