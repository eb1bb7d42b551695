"""An outer gradient from values of the loss alone."""

import keras
import tensorflow as tf

from keras_maml.arguments import check_positive
from keras_maml.meta_gradients.base import MetaGradient, TaskResult


@keras.saving.register_keras_serializable("keras_maml")
class EvolutionStrategies(MetaGradient):
    """Estimates the outer gradient from query losses at random variables near theta, adapted from each of them.

    ```
    1 / (2 samples scale) sum_i [F(v + scale e_i) - F(v - scale e_i)] e_i       # antithetic=True
    1 / (samples scale)   sum_i [F(v + scale e_i) - F(v)] e_i                   # antithetic=False
    ```

    for `F(v)` the query loss after adaptation from the variables v (theta, and the weights of rule and start), `e_i` of
    independent standard normal numbers. That is an unbiased estimate of the gradient of `E F(v + scale e)`, so F need
    have none itself: it may count errors. The support loss must have one, as inner steps follow it: pass it as
    `MetaModel(inner_loss=...)` where the compiled loss has none.

    No gradient is taken through inner steps, and memory grows neither with steps nor with samples. The cost is that of
    `2 samples + 1` evaluations (`samples + 1`), `3 steps S + Q` forward passes each. The variance grows with the number
    of weights: for a linear F and N weights the squared error is `(N + 1) / samples` times the squared gradient. Use it
    for few weights, or many tasks and samples.

    Noise differs by task, replica and outer step; dropout masks are the same for all samples of a task.

    Args:
        samples: number of directions a task, at least 1.
        scale: standard deviation of the noise on every variable, positive.
        antithetic: whether to look both ways along each direction, for less variance.

    Raises:
        ValueError: if an argument is out of range, and in the first step if the support loss has no gradient.

    References:
        - Song et al. 2020, "ES-MAML: simple Hessian-free meta learning", arXiv:1910.01215
        - Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning",
          arXiv:1703.03864
    """

    second_order = False
    draws = True

    def __init__(self, samples=16, scale=0.05, antithetic=True, **kwargs):
        super().__init__(**kwargs)
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"`samples` must be an integer of at least 1. Received: samples={samples!r}.")
        check_positive("scale", scale)
        if not isinstance(antithetic, bool):
            raise ValueError(f"`antithetic` must be `True` or `False`. Received: antithetic={antithetic!r}.")
        self.samples = samples
        self.scale = scale
        self.antithetic = antithetic

    def __call__(self, task, variables):
        ((params, state),) = task.iterates(variables, stop_gradients=True)
        adapting = {i for i, adapts in enumerate(task.learner.mask) if adapts}
        if task.learner.steps and adapting <= task.unreached:
            raise ValueError(
                "The loss on the supports has no gradient, so that inner steps cannot follow it. Pass one that has, "
                "such as `MetaModel(..., inner_loss=keras.losses.MeanSquaredError())`."
            )
        with tf.GradientTape() as tape:
            tape.watch(params)
            loss, predictions, after = task.loss(params, state, on="query")
            reached = [p for p in tf.nest.flatten(predictions) if p.dtype.is_floating]
            reached.append(task.loss(params, state, on="support")[0])
        # Noise would move weights without effect at random: whose they are, a gradient of the predictions says.
        effects = tape.gradient(reached, params)
        gradients = self._estimate(task, variables, loss)
        for n, i in enumerate(task.learner.learned):
            if effects[i] is None and (i not in adapting or i in task.unreached):
                gradients[n] = None
        return TaskResult(loss, predictions, gradients, after)

    def _estimate(self, task, variables, loss):
        def at(noise, sign):
            moved = [v + tf.constant(sign * self.scale, v.dtype) * e for v, e in zip(variables, noise, strict=True)]
            ((params, state),) = task.iterates(moved, stop_gradients=True)
            return task.loss(params, state, on="query")[0]

        def add(sample, sums):
            noise = self.noise(task.seed, sample, variables)
            change = at(noise, 1) - (at(noise, -1) if self.antithetic else loss)
            slope = change / ((2 if self.antithetic else 1) * self.scale * self.samples)
            return sample + 1, [s + tf.cast(slope, s.dtype) * e for s, e in zip(sums, noise, strict=True)]

        # A loop, not a stack: the weights of one sample at a time.
        _, sums = tf.while_loop(
            lambda sample, _: sample < self.samples,
            add,
            (tf.constant(0), [tf.zeros(v.shape, v.dtype) for v in variables]),
            parallel_iterations=1,
            maximum_iterations=self.samples,
        )
        return list(sums)

    def noise(self, seed, sample, variables):
        """Standard normal numbers for one direction, a list shaped as `variables`.

        Args:
            seed: of the task, int64 `(2,)`.
            sample: number of the direction, an integer or scalar tensor.
            variables: list of tensors.
        """
        fold_in = tf.random.experimental.stateless_fold_in
        seed = fold_in(seed, tf.cast(sample, tf.int64))
        return [
            tf.random.stateless_normal(v.shape, fold_in(seed, tf.constant(i, tf.int64)), dtype=v.dtype)
            for i, v in enumerate(variables)
        ]

    def get_config(self):
        return {
            **super().get_config(),
            "samples": self.samples,
            "scale": self.scale,
            "antithetic": self.antithetic,
        }
