"""Outer gradients through the inner steps."""

import functools

import keras
import tensorflow as tf

from keras_maml.adaptation import unscaled
from keras_maml.arguments import check_progress, check_share
from keras_maml.inner_loop import replace
from keras_maml.losses import keras_mask
from keras_maml.meta_gradients.base import MetaGradient, TaskResult


@keras.saving.register_keras_serializable("keras_maml")
class Unrolled(MetaGradient):
    """Differentiates through the inner steps, all of them by default.

    ```
    d phi_K / d theta = A_(K-1) ... A_(K-n),    A_k = d phi_(k+1) / d phi_k = I - learning_rate * H_k for `SGD`
    ```

    with n = K, or `truncate`. The gradients of the steps before those n are constants, as `FirstOrder` takes them, so
    that learned step sizes of all steps get a gradient, and `truncate=0` is `FirstOrder`.

    `rematerialize` keeps only the parameters and the state before each step, and makes the step again in the backward
    pass: 11 or 12 in place of 9 forward passes for each step, and memory that grows by the weights for each step in
    place of all its intermediate results. More than `inner_loop.MOST_UNROLLED_STEPS` steps are always differentiated
    so.

    `first_order_share` anneals the order of derivatives: for the first share of the run (see `anneal`) all inner
    gradients are constants, as `FirstOrder` takes them and at its cost, then none but those of `truncate`. Both ways
    are in the compiled step, which takes 2.4 times as long to trace. An estimator that `anneal` was never called on
    is at the end of its run. Without inner steps it changes nothing.

    Args:
        truncate: number of last steps to differentiate through, at least 0; default all.
        rematerialize: whether the backward pass makes each step again instead of keeping its intermediate results.
        first_order_share: share of the run with first-order gradients, in (0, 1]; default `None`, no such share.

    Raises:
        ValueError: for a `truncate` out of range, nothing to rematerialise, or a share out of range.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400
        - `truncate`: Shaban et al. 2019, "Truncated back-propagation for bilevel optimization", arXiv:1810.10667
        - `rematerialize`: Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174
        - `first_order_share`: Antoniou et al. 2019, "How to train your MAML", arXiv:1810.09502, there 50 of 100 epochs
    """

    def __init__(self, truncate=None, rematerialize=False, first_order_share=None, **kwargs):
        super().__init__(**kwargs)
        if truncate is not None and (isinstance(truncate, bool) or not isinstance(truncate, int) or truncate < 0):
            raise ValueError(f"`truncate` must be `None` or an integer of at least 0. Received: truncate={truncate!r}.")
        if not isinstance(rematerialize, bool):
            raise ValueError(f"`rematerialize` must be `True` or `False`. Received: rematerialize={rematerialize!r}.")
        if rematerialize and truncate == 0:
            raise ValueError(
                "`rematerialize=True` saves the memory of steps that are differentiated through, and with `truncate=0` "
                "there are none. Leave `rematerialize` out."
            )
        check_share("first_order_share", first_order_share)
        if first_order_share is not None and truncate == 0:
            raise ValueError(
                "`first_order_share` is the share of the run before second derivatives are taken, and with "
                "`truncate=0` they never are. Leave `first_order_share` out."
            )
        self.truncate = truncate
        self.rematerialize = rematerialize
        self.first_order_share = first_order_share
        self.second_order = truncate != 0
        self.anneals = first_order_share is not None

    def build(self, steps):
        if self.first_order_share is not None:
            self.order = self.add_weight(
                shape=(), dtype="int32", initializer=keras.initializers.Constant(2), trainable=False, name="order"
            )

    def anneal(self, progress):
        check_progress(progress)
        if self.anneals and not self.weights:
            raise ValueError(
                f"`{type(self).__name__}` has nothing to anneal before it knows the number of inner steps. Make a "
                "`MetaModel` with it first, or call `build(steps)`."
            )
        if self.first_order_share is not None:
            self.order.assign(1 if progress < self.first_order_share else 2)

    def __call__(self, task, variables):
        if self.first_order_share is None:
            return self._unroll(task, variables, self.truncate)
        ways = (functools.partial(self._unroll, task, variables, truncate) for truncate in (self.truncate, 0))
        return one_of(tf.equal(self.order, 2), *ways, like=variables)

    def _unroll(self, task, variables, truncate):
        scale = task.learner.loss_scale
        stations = self._stations(task.learner.steps)
        with tf.GradientTape() as tape:
            tape.watch(variables)
            *earlier, (params, state) = task.iterates(
                variables, at=stations, truncate=truncate, rematerialize=self.rematerialize
            )
            loss, predictions, after = task.loss(params, state, on="query")
            scaled = loss * scale
        targets, cotangents = self._of_earlier(task, list(zip(stations, earlier, strict=False)))
        last = tf.cast(self._last_weight(), scaled.dtype)
        gradients, reached = tape.gradient(
            [scaled, *targets], (variables, params), output_gradients=[last, *cotangents]
        )
        # A loop connects all that goes in with all that comes out, with a gradient of zero where unrolled steps have
        # none: what neither supports nor queries reach must be known as such.
        learned = enumerate(task.learner.learned)
        alone = [n for n, i in learned if i in task.unreached and reached[i] is None]
        gradients = replace(unscaled(gradients, scale), alone, [None] * len(alone))
        return TaskResult(loss, predictions, gradients, after)

    def _stations(self, steps):
        """Numbers of steps after which the queries are judged, the last one `steps`."""
        return (steps,)

    def _last_weight(self):
        """The weight of the loss after the last step."""
        return 1.0

    def _of_earlier(self, task, iterates):
        """What losses after earlier steps add: `(targets, cotangents)`, tensors of the iterates and the weighted
        gradients of those losses with respect to them, times the task's `loss_scale`.

        Args:
            task: the `Task`.
            iterates: `(number of steps, (params, state))` of all stations but the last.
        """
        return [], []

    def get_config(self):
        return {
            **super().get_config(),
            "truncate": self.truncate,
            "rematerialize": self.rematerialize,
            "first_order_share": self.first_order_share,
        }


@keras.saving.register_keras_serializable("keras_maml")
class FirstOrder(Unrolled):
    """Takes the inner gradients for constants; learned step sizes still get their gradient.

    The same as `Unrolled(truncate=0)`, without arguments: there is nothing to truncate further or to rematerialise.

    References:
        - Finn et al. 2017, section 5.2, arXiv:1703.03400; Nichol et al. 2018, "On first-order meta-learning
          algorithms", arXiv:1803.02999
    """

    def __init__(self, **kwargs):
        super().__init__(truncate=0, **kwargs)

    def get_config(self):
        return {"name": self.name}


def one_of(condition, first, second, like):
    """The `TaskResult` of one of two functions, of which the other is not run.

    Args:
        condition: boolean scalar tensor.
        first, second: functions without arguments.
        like: list of tensors, aligned with the gradients and shaped as they are.
    """
    lacking, masks = [], []

    def branch(function):
        def run():
            result = function()
            lacking.append({i for i, g in enumerate(result.gradients) if g is None})
            gradients = [tf.zeros_like(v) if g is None else g for v, g in zip(like, result.gradients, strict=True)]
            # A branch returns tensors alone, not the masks that Keras hangs on them.
            masks[:] = [tf.nest.map_structure(keras_mask, result.predictions)]
            flat = [mask for mask in tf.nest.flatten(masks[0]) if mask is not None]
            return result.loss, result.predictions, gradients, list(result.state), flat

        return run

    loss, predictions, gradients, state, flat = tf.cond(condition, branch(first), branch(second))
    for tensor, mask in zip(tf.nest.flatten(predictions), tf.nest.flatten(masks[0]), strict=True):
        if mask is not None:
            tensor._keras_mask = flat.pop(0)
    nowhere = sorted(set.intersection(*lacking))
    return TaskResult(loss, predictions, replace(gradients, nowhere, [None] * len(nowhere)), state)
