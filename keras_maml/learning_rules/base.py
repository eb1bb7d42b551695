"""What every inner update rule has: a learning rate, clipping, a state that starts anew in every task."""

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from keras_maml.arguments import check_positive


class LearningRule(keras.layers.Layer):
    """Base class of inner update rules.

    A rule is a Keras layer so that it may own weights (learned step sizes), which are meta-learned with those of the
    model. It sees the adapting parameters only. A new rule implements `step`, and `init` if it keeps a state from one
    step to the next. `descend` makes its moves at the learning rate, or what a schedule says.

    Args:
        learning_rate: size of an inner step, positive, or a `LearningRateSchedule` of Keras, which is read at the
            number of the step, from 0. A schedule of your own must be registered for serialization.
        clipnorm: if given, the inner gradient of a task is scaled down to this global norm where it is longer.
    """

    learned = False  # whether `build` makes weights that are meta-learned
    learns_rates = False  # whether the learning rates are among them

    def __init__(self, learning_rate=0.01, clipnorm=None, **kwargs):
        # Inner updates are made in the precision of the weights, whatever the global policy.
        super().__init__(**{"dtype": "float32", **kwargs})
        scheduled = isinstance(learning_rate, LearningRateSchedule)
        if scheduled and self.learns_rates:
            raise ValueError(
                f"`{type(self).__name__}` learns its rates, which start at a number. Received: learning_rate="
                f"{type(learning_rate).__name__}. Pass a positive number, or the schedule to `SGD`."
            )
        if not scheduled:
            check_positive("learning_rate", learning_rate)
        if clipnorm is not None:
            check_positive("clipnorm", clipnorm)
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

    def rate(self, index, dtype):
        """The learning rate of a step, as a scalar tensor.

        Args:
            index: number of the step, see `step`.
            dtype: of the result.
        """
        rate = self.learning_rate
        if isinstance(rate, LearningRateSchedule):
            return tf.cast(rate(tf.convert_to_tensor(index)), dtype)
        return tf.constant(rate, dtype)

    def descend(self, params, moves, index):
        """`p - rate * m` for each parameter and its move."""
        return [p - self.rate(index, p.dtype) * m for p, m in zip(params, moves, strict=True)]

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
        rate = self.learning_rate
        if isinstance(rate, LearningRateSchedule):
            rate = keras.saving.serialize_keras_object(rate)
        return {**super().get_config(), "learning_rate": rate, "clipnorm": self.clipnorm}

    @classmethod
    def from_config(cls, config):
        if isinstance(config.get("learning_rate"), dict):
            rate = keras.saving.deserialize_keras_object(config["learning_rate"])
            config = {**config, "learning_rate": rate}
        return super().from_config(config)
