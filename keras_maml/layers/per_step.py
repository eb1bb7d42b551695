"""Batch normalisation with weights and moving moments of its own for every inner step."""

import keras
import tensorflow as tf

from keras_maml.arguments import check_flag, check_whole
from keras_maml.layers import normalization
from keras_maml.layers.normalization import STATISTICS, statistics_of


@keras.saving.register_keras_serializable("keras_maml")
class PerStepBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation with a gamma, a beta and moving moments for every number of inner steps made.

    ```
    y = gamma[k] * (x - mean) / sqrt(variance + epsilon) + beta[k]
    ```

    in a call with weights that have made k inner steps: supports are seen at k = 0, ..., K - 1, queries at k = K (with
    `MultiStep` at 1, ..., K). Steps beyond `steps` use the last row, so that evaluation may make more. (The authors'
    code has the queries after step k in the row of k - 1; here a row belongs to weights that have made k steps, for
    supports and queries alike.)

    | `statistics` | mean and variance inside a `MetaModel` | moving moments |
    |---|---|---|
    | `"moving"` | of the call; row k for queries in evaluation | `(steps + 1, channels)` |
    | `"batch"`, `"support"` | as for `keras_maml.layers.BatchNormalization` | none for a step |

    In `fit` the call at step k moves row k, for each task from where the batch began, and `fit` keeps the mean over the
    tasks: so `momentum` acts once an outer step.

    Inner steps of an evaluation are those of `fit`: by the supports' own moments. With moving ones gradients would come
    back through fixed variances, and an inner rate that is right in `fit` diverge: a four-layer net on Omniglot, whose
    first variances are 0.003, then gave logits of 11,000, and was at chance at a training loss of 0.23.

    Weights per step are meta-learned as all others are, and do not adapt within a task, whatever `layers=` says: row k
    is read after k steps and not again, so that nothing would ever see it moved. Called by itself, outside a
    `MetaModel`, the layer is a `BatchNormalization` with the first rows. `MetaModel.adapt` gives a learner that has a
    stock layer with the rows of the last step in its place.

    Args:
        steps: number of inner steps, at least 1, at most the `steps` of the algorithm.
        statistics: `"moving"`, `"batch"` or `"support"`.
        weights_per_step: whether gamma and beta have a row for each step.
        moments_per_step: whether the moving moments have; default for `"moving"` alone.
        **kwargs: arguments of `keras.layers.BatchNormalization`.

    Raises:
        ValueError: for arguments out of range, or nothing that differs by step.

    References:
        - Antoniou et al. 2019, "How to train your MAML", arXiv:1810.09502
    """

    def __init__(self, steps, statistics="moving", weights_per_step=True, moments_per_step=None, **kwargs):
        super().__init__(**kwargs)
        _check(steps, statistics, weights_per_step, moments_per_step)
        if self.renorm:
            raise ValueError("`renorm=True` needs moving moments of one kind for all steps. Use `renorm=False`.")
        self.steps = steps
        self.statistics = statistics
        self.weights_per_step = weights_per_step
        self.moments_per_step = moments_per_step
        self._rows_of_moments = statistics == "moving" if moments_per_step is None else moments_per_step
        if not (self._rows_of_moments or weights_per_step and (self.center or self.scale)):
            raise ValueError(
                "Nothing of this layer differs by step. Set `weights_per_step` or `moments_per_step`, or use "
                "`keras_maml.layers.BatchNormalization`."
            )

    def add_weight(self, shape=None, **kwargs):
        name = kwargs.get("name")
        of_weights, of_moments = name in ("gamma", "beta"), name in ("moving_mean", "moving_variance")
        if of_weights and self.weights_per_step or of_moments and self._rows_of_moments:
            shape = (self.steps + 1, *shape)
        return super().add_weight(shape=shape, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        # Not moved by the layer: a `Task` sets it in the state that it calls the model with.
        self.inner_step = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="inner_step"
        )

    @property
    def weights_of_steps(self):
        """Trainable weights with a row for each step, which do not adapt within a task."""
        return self.trainable_variables if self.weights_per_step else []

    def row(self):
        """Which row of a weight with rows belongs to the inner step that runs, an int32 scalar."""
        return tf.minimum(tf.convert_to_tensor(self.inner_step), self.steps)

    def call(self, inputs, training=None, mask=None):
        scope = normalization.current_scope()
        statistics = statistics_of(self)
        weight = None if scope is None else scope.weight
        if statistics == "moving" and scope is not None and scope.on == "support" and self.trainable and not training:
            statistics = "batch"
        if statistics == "batch" or scope is not None and statistics == "support":
            on = "support" if scope is None else scope.on
            return normalization.normalise(self, inputs, mask, weight, statistics, on)
        return self._by_moving_moments(inputs, bool(training) and self.trainable, mask, weight)

    def _by_moving_moments(self, inputs, learns, mask, weight):
        if not learns:
            return normalization.normalise(self, inputs, statistics="support", on="query")
        outputs, mean, variance = normalization.normalise_and_measure(self, inputs, mask, weight)
        for variable, moment in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = tf.convert_to_tensor(variable)
            # No gradient: the moving moments are for evaluation, nothing in training reads them.
            new = self.momentum * old + (1 - self.momentum) * tf.cast(tf.stop_gradient(moment), old.dtype)
            if self._rows_of_moments:
                here = tf.range(self.steps + 1) == self.row()
                new = tf.where(here[:, tf.newaxis], new, old)
            variable.assign(new)
        return outputs

    def keep_row(self):
        """Leaves of every weight the row of the inner step that runs, so that the layer can become a stock one.

        `Layer._tracker` and `Layer._untrack_variable` are private (Keras 3.15): there is no public way to give a built
        layer other weights, and a clone with other layers could be made of Functional models only.
        """
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        kept = {name: normalization.vector(self, name) for name in names}
        shape = [None] * self.input_spec.ndim
        ((axis, shape[axis]),) = self.input_spec.axes.items()
        self._tracker.unlock()
        for variable in self.variables:
            self._untrack_variable(variable)
        del self.inner_step
        self.weights_per_step = self._rows_of_moments = False
        with keras.name_scope(self.name, caller=self):
            keras.layers.BatchNormalization.build(self, shape)
        self._tracker.lock()
        self.trainable = self.trainable  # of the new weights too
        for name, value in kept.items():
            if value is not None:
                getattr(self, name).assign(value)

    def get_config(self):
        return {
            **super().get_config(),
            "steps": self.steps,
            "statistics": self.statistics,
            "weights_per_step": self.weights_per_step,
            "moments_per_step": self.moments_per_step,
        }


def per_step_normalization(model, steps, statistics="moving", weights_per_step=True, moments_per_step=None):
    """A copy of a model in which every batch normalisation layer has rows for each inner step.

        model = keras_maml.layers.per_step_normalization(model, steps=5)
        meta_model = keras_maml.MetaModel(model, keras_maml.MAMLPlusPlus(steps=5))

    Each row starts at the weights of the layer that it takes the place of; other weights are copied.

    Args:
        model: a built `Sequential` or Functional model, nested ones included.
        steps, statistics, weights_per_step, moments_per_step: arguments of `PerStepBatchNormalization`.

    Returns:
        A model of the same layer names.

    Raises:
        ValueError: for a model of another kind, or one without batch normalisation.
    """
    if type(model) is not keras.Sequential and type(model).__name__ != "Functional" or not model.built:
        raise ValueError(
            "`model` must be a built Sequential or Functional model, whose layers can be replaced. Received: "
            f"{type(model).__name__} '{getattr(model, 'name', model)}'. In a model class of your own put "
            "`PerStepBatchNormalization` into the constructor."
        )
    _check(steps, statistics, weights_per_step, moments_per_step)
    settings = {"statistics": statistics, "weights_per_step": weights_per_step, "moments_per_step": moments_per_step}
    made = []

    def replaced(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer.__class__.from_config(layer.get_config())
        made.append(PerStepBatchNormalization.from_config({**layer.get_config(), "steps": steps, **settings}))
        return made[-1]

    clone = keras.models.clone_model(model, clone_function=replaced, recursive=True)
    if not made:
        raise ValueError(
            f"Model '{model.name}' has no batch normalisation to replace. Expected at least one layer "
            "`keras.layers.BatchNormalization`."
        )
    counters = {id(layer.inner_step) for layer in made}
    targets = [v for v in clone.variables if id(v) not in counters]
    for source, target in zip(model.variables, targets, strict=True):
        target.assign(tf.broadcast_to(tf.convert_to_tensor(source), target.shape))
    return clone


def _check(steps, statistics, weights_per_step, moments_per_step):
    check_whole(1, steps=steps)
    if statistics not in STATISTICS:
        raise ValueError(f"`statistics` must be one of {STATISTICS}. Received: statistics={statistics!r}.")
    check_flag("weights_per_step", weights_per_step)
    if moments_per_step is not None:
        check_flag("moments_per_step", moments_per_step)
    if moments_per_step and statistics != "moving":
        raise ValueError(
            f"With statistics={statistics!r} no moving moments are read, so they cannot be per step. Leave "
            "`moments_per_step` out, or use `statistics='moving'`."
        )
