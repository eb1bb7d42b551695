"""The multi-step loss of MAML++: the queries are judged after every inner step."""

import keras
import tensorflow as tf

from keras_maml.adaptation import value_and_gradients
from keras_maml.arguments import check_progress, check_share
from keras_maml.inner_loop import replace
from keras_maml.meta_gradients.unrolled import Unrolled

LEAST = 0.03  # of what an earlier step has at first, while it has any: `min_value_for_non_final_losses` of the authors
EARLIER_STREAM = 16  # see `Task.state`; one more for each step


@keras.saving.register_keras_serializable("keras_maml")
class MultiStep(Unrolled):
    """Judges the queries after every inner step, not after the last alone, and anneals the weights to the last.

    ```
    d / d theta of sum_k w_k L(phi_k(theta)),    k = 1, ..., K
    w_k = max(1 - t, 0.03) / K for k < K,    w_K = 1 - (w_1 + ... + w_(K-1)),    t = progress / multi_step_share
    ```

    while t < 1, as the authors' code has it, with `progress` the share of the run that has passed (see `anneal`); then
    all weight is on the last step, and the estimator is `Unrolled`: the queries of earlier steps are judged no more, at
    no cost but that of having been traced. The loss and the predictions of a `TaskResult`, which logs show, are those
    after the last step, as in evaluation, whatever the weights.

    The weights are those of training steps: a saved variable, `step_weights`, `(K,)`, or `(1,)` if `K = 0`. With one
    step or none there is no earlier one, and this is `Unrolled`. An estimator that `anneal` was never called on is at
    the end of its run. Each pass over the queries beside the last has dropout masks of its own, and nothing of the
    state that it leaves, such as moving moments, is kept. More than `inner_loop.MOST_UNROLLED_STEPS` steps are unrolled
    too, as each has queries to be judged.

    Cost in forward passes: `3 Q` for each earlier step, as long as it has weight. A meta-step of four convolutions with
    32 filters, 5 steps, 5 supports and 25 queries takes 1.8 times that of `Unrolled` then, and the same after; it takes
    1.9 times as long to trace, 4 times with `first_order_share`.

    Args:
        multi_step_share: share of the run in which earlier steps have weight, in (0, 1].
        **kwargs: arguments of `Unrolled`: `first_order_share`, `truncate`, `rematerialize`.

    Raises:
        ValueError: for arguments out of range.

    References:
        - Antoniou et al. 2019, "How to train your MAML", arXiv:1810.09502, there 10 of 100 epochs
    """

    def __init__(self, multi_step_share=0.1, **kwargs):
        super().__init__(**kwargs)
        if multi_step_share is None:
            raise ValueError(
                "`multi_step_share` must be a share of the run in (0, 1]. Received: multi_step_share=None. Without a "
                "multi-step loss use `Unrolled()`."
            )
        check_share("multi_step_share", multi_step_share)
        self.multi_step_share = multi_step_share
        self.anneals = True

    def build(self, steps):
        super().build(steps)
        self.step_weights = self.add_weight(
            shape=(max(steps, 1),),
            dtype="float32",
            initializer=lambda shape, dtype: tf.constant(_weights(*shape, 1.0), dtype),
            trainable=False,
            name="step_weights",
        )

    def anneal(self, progress):
        check_progress(progress)
        super().anneal(progress)
        self.step_weights.assign(_weights(self.step_weights.shape[0], progress / self.multi_step_share))

    def _stations(self, steps):
        return tuple(range(1, steps + 1)) or (0,)

    def _weight(self, number):
        """Of the loss after some number of steps: that of the last row beyond them."""
        rows = self.step_weights.shape[0]
        return tf.convert_to_tensor(self.step_weights)[min(number, rows) - 1]

    def _last_weight(self):
        return self._weight(self.step_weights.shape[0])

    def _of_earlier(self, task, iterates):
        if not iterates:
            return [], []
        # What does not adapt is the same tensor after every step: one target, for the sum.
        sources = [_sources(task, params, state) for _, (params, state) in iterates]
        targets = list({id(tensor): tensor for tensors in sources for tensor in tensors}.values())
        places = {id(tensor): place for place, tensor in enumerate(targets)}

        def judged():
            totals = [None] * len(targets)
            for (number, (params, state)), tensors in zip(iterates, sources, strict=True):
                weight = self._weight(number)
                for tensor, gradient in zip(tensors, _query_gradients(task, params, state, number), strict=True):
                    if gradient is None:
                        continue
                    # Not a product alone: the loss of a step without weight may be infinite.
                    share = tf.where(weight > 0, tf.cast(weight, gradient.dtype) * gradient, 0)
                    place = places[id(tensor)]
                    totals[place] = share if totals[place] is None else totals[place] + share
            return [tf.zeros_like(t) if total is None else total for t, total in zip(targets, totals, strict=True)]

        def none():
            return [tf.zeros_like(t) for t in targets]

        # No gradient is taken through the branch: it gives the cotangents of the iterates.
        earlier = tf.convert_to_tensor(self.step_weights)[:-1]
        return targets, tf.cond(tf.reduce_any(earlier > 0), judged, none)

    def get_config(self):
        return {**super().get_config(), "multi_step_share": self.multi_step_share}


def _weights(steps, t):
    earlier = max(1 - t, LEAST) / steps if t < 1 else 0.0
    return [earlier] * (steps - 1) + [1 - (steps - 1) * earlier]


def _moments(task, state):
    """Positions in the state of what queries may depend on: moments that supports leave."""
    return [i for i, t in enumerate(state) if t.dtype.is_floating] if task.learner.reads_support_moments else []


def _sources(task, params, state):
    return [*params, *(state[i] for i in _moments(task, state))]


def _query_gradients(task, params, state, number):
    """Of the query loss after some number of steps, with respect to `_sources`, times `loss_scale`."""
    scale = task.learner.loss_scale
    moments = _moments(task, state)
    aside = task.aside(state, EARLIER_STREAM + number)

    def query_loss(values):
        return task.loss(values[: len(params)], replace(aside, moments, values[len(params) :]), on="query")

    _, gradients = value_and_gradients(query_loss, _sources(task, params, state), scale)
    return [None if g is None else g * scale for g in gradients]
