"""A Keras model as a pure function of the values of its variables."""

import inspect

import keras
import tensorflow as tf

from keras_maml.layers import adaptation_scope


class PureModel:
    """A Keras model as a pure function of the values of its variables.

    Args:
        function: the model, or a part of it.
        model: the model whose variables the values stand for; default `function`.
    """

    def __init__(self, function, model=None):
        model = model or function
        self.function = function
        self.trainable = list(model.trainable_variables)
        self.non_trainable = list(model.non_trainable_variables)
        # Losses are at least float32, also where all weights are of half precision.
        self.loss_dtype = keras.backend.result_type("float32", *{v.dtype for v in self.trainable})
        parameters = inspect.signature(function.call).parameters.values()
        self.strays = False  # whether the last call changed variables that the model does not track
        self._takes_training = any(p.name == "training" or p.kind is p.VAR_KEYWORD for p in parameters)

    def __call__(self, params, state, x, training, on, weight=None):
        """Calls the model without touching its variables.

        Args:
            params: values of its trainable variables.
            state: values of its non-trainable variables.
            x: inputs, `(examples, ...)`, nested as the model takes them.
            training: whether dropout and the like are on.
            on: `"support"` or `"query"`.
            weight: `(examples,)` or `None`.

        Returns:
            `(predictions, penalty, state)`: the penalty is the sum of the model's regularisation losses at `params`.
        """
        mapping = [*zip(self.trainable, params, strict=True), *zip(self.non_trainable, state, strict=True)]
        keywords = {"training": training} if self._takes_training else {}
        with keras.StatelessScope(mapping, collect_losses=True) as scope, adaptation_scope(on, weight):
            predictions = self.function(x, **keywords)
            # Not `function.losses`: Keras 3.15 knows whose a loss is by the `id` of its tensor, and forgets none in a
            # stateless scope, so that a tensor with the id of an old one counts for several layers.
            regularised = [v for v in self.function.trainable_variables if v.regularizer is not None]
            penalties = [*scope.losses, *(v.regularizer(v.value) for v in regularised)]
            penalties = [tf.cast(penalty, self.loss_dtype) for penalty in penalties]
        self.strays = len(scope.state_mapping) > len(mapping)
        state = [scope.get_current_value(variable) for variable in self.non_trainable]
        return predictions, tf.add_n(penalties) if penalties else 0.0, state
