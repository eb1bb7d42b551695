"""What every estimator has."""

from typing import NamedTuple

import keras
import tensorflow as tf


class TaskResult(NamedTuple):
    """What an estimator gives for one task: the loss and predictions on its queries after adaptation, the outer
    gradient aligned with `variables` (`None` for a variable that has none), and the model's state after the task."""

    loss: tf.Tensor
    predictions: tf.Tensor
    gradients: list
    state: list


class MetaGradient(keras.layers.Layer):
    """Base class of outer gradient estimators.

    A Keras layer, so that an estimator may own weights (annealed ones, say), saved with the model. A new one
    implements `__call__(task, variables) -> TaskResult` and returns the gradient of its task, unscaled.
    """

    differentiates = True  # whether it gives gradients for more than the adapting weights
    second_order = True  # whether it takes second derivatives of the support loss
    draws = False  # whether it draws random numbers, from `Task.seed`
    anneals = False  # whether it changes as the run goes on, see `anneal`
    progress = None  # what share of a run `fit` has told it of last

    def check(self, rule, layers, start=None):
        """Refuses what cannot be combined with this estimator.

        Args:
            rule: the `LearningRule` of the algorithm.
            layers: its choice of layers.
            start: its `Start`, or `None`.

        Raises:
            ValueError: with the reason and the remedy.
        """
        if self.differentiates:
            return
        name = type(self).__name__
        if layers is not None:
            raise ValueError(
                f"`{name}` gives no gradient for weights that do not adapt, so it needs `layers=None`. Received: "
                f"layers={layers!r}. Use `Unrolled()` or `FirstOrder()` to adapt only some layers."
            )
        if rule.learned:
            raise ValueError(
                f"`{name}` gives no gradient for learned step sizes or other weights of a rule. Received: "
                f"rule={type(rule).__name__}. Use a rule without weights, such as `SGD`, or `Unrolled()`."
            )
        if start is not None and not start.constant:
            raise ValueError(
                f"`{name}` gives no gradient through a start that depends on the supports and on other weights. "
                f"Received: start={type(start).__name__}. Use `Unrolled()` or `FirstOrder()`, or `start=ZeroHead()`."
            )

    def build(self, steps):
        """Makes the estimator's weights.

        Args:
            steps: number of inner steps in training.
        """

    def anneal(self, progress):
        """Sets what changes as the run goes on; nothing, unless `anneals`.

        `fit` calls it at least 100 times in a run (`keras_maml.callbacks.Anneal`), a training loop of your own calls
        `meta_model.meta_gradient.anneal(share)`. No step is compiled anew by it.

        Args:
            progress: share of the run that has passed, in [0, 1].
        """

    def __call__(self, task, variables):
        raise NotImplementedError(f"{type(self).__name__} must implement `__call__`.")

    def of_batch(self, gradients_at, variables):
        """The outer gradient of a batch: the mean over its tasks, but for estimators that look at several.

        Args:
            gradients_at: function from values of the meta-learned variables to what `run_tasks` returns.
            variables: list of tensors, those values.

        Returns:
            `(stacked, gradients, updates)` as `run_tasks`.
        """
        return gradients_at(variables)

    def get_config(self):
        return {"name": self.name}
