"""The outer gradient a little uphill, so that training ends where the meta-loss is flat."""

import keras
import tensorflow as tf

from keras_maml.arguments import check_positive
from keras_maml.linear_solvers import dot
from keras_maml.meta_gradients.base import MetaGradient
from keras_maml.meta_gradients.unrolled import Unrolled
from keras_maml.replicas import mean_over_replicas


@keras.saving.register_keras_serializable("keras_maml")
class SharpnessAware(MetaGradient):
    """Takes the outer gradient where a small step uphill leads, as sharpness-aware minimisation does.

    ```
    g = G(v),    outer gradient = G(v + radius * g / |g|)
    ```

    for `G` the mean over the tasks of a batch of what another estimator gives, v all meta-learned variables, `|g|` the
    norm over all of them. If g is 0 the outer gradient is 0. This is Sharp-MAML_up of the paper: the meta-loss is made
    flat, and inner steps are as they were. (Its other half, Sharp-MAML_low, moves uphill in every inner step too.)

    The loss and the predictions are those at v. Costs twice as much as the estimator alone. The step uphill is taken by
    the batch of all replicas together.

    Args:
        meta_gradient: the estimator; default `Unrolled()`.
        radius: length of the step uphill, positive.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Abbas et al. 2022, "Sharp-MAML: sharpness-aware model-agnostic meta learning", arXiv:2206.03996
        - Foret et al. 2021, "Sharpness-aware minimization for efficiently improving generalization", arXiv:2010.01412
    """

    def __init__(self, meta_gradient=None, radius=0.05, **kwargs):
        super().__init__(**kwargs)
        meta_gradient = Unrolled() if meta_gradient is None else meta_gradient
        if not isinstance(meta_gradient, MetaGradient) or isinstance(meta_gradient, SharpnessAware):
            raise ValueError(
                "`meta_gradient` must be another `MetaGradient`, such as `Unrolled()`. Received: "
                f"meta_gradient={meta_gradient!r}."
            )
        check_positive("radius", radius)
        self.meta_gradient = meta_gradient
        self.radius = radius
        self.differentiates = meta_gradient.differentiates
        self.second_order = meta_gradient.second_order
        self.draws = meta_gradient.draws
        self.anneals = meta_gradient.anneals

    def check(self, rule, layers, start=None):
        self.meta_gradient.check(rule, layers, start)

    def build(self, steps):
        self.meta_gradient.build(steps)

    def anneal(self, progress):
        self.meta_gradient.anneal(progress)

    def __call__(self, task, variables):
        return self.meta_gradient(task, variables)

    def of_batch(self, gradients_at, variables):
        stacked, gradients, updates = self.meta_gradient.of_batch(gradients_at, variables)
        if not gradients:  # a start sets all that is not frozen
            return stacked, gradients, updates
        gradients = mean_over_replicas(gradients, stacked)
        dtype = keras.backend.result_type(*{g.dtype for g in gradients})
        wide = [tf.cast(g, dtype) for g in gradients]
        scale = tf.math.divide_no_nan(tf.constant(self.radius, dtype), tf.sqrt(dot(wide, wide)))
        moved = [v + tf.cast(scale * g, v.dtype) for v, g in zip(variables, wide, strict=True)]
        above, gradients, _ = self.meta_gradient.of_batch(gradients_at, moved)
        if "finite" in stacked:
            stacked["finite"] &= above["finite"]
        return stacked, gradients, updates

    def get_config(self):
        part = keras.saving.serialize_keras_object(self.meta_gradient)
        return {**super().get_config(), "meta_gradient": part, "radius": self.radius}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "meta_gradient": keras.saving.deserialize_keras_object(config["meta_gradient"])})
