"""Estimators that differentiate, or compare parameters; see the package."""

import functools
import numbers
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_maml.adaptation import unscaled, value_and_gradients
from keras_maml.inner_loop import replace
from keras_maml.learning_rules import ProximalSGD
from keras_maml.linear_solvers import conjugate_gradient, hessian_vector_product, neumann_series
from keras_maml.losses import keras_mask

SOLVERS = ("conjugate_gradient", "neumann")


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
    is at the end of its run.

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


@keras.saving.register_keras_serializable("keras_maml")
class ParameterDifference(MetaGradient):
    """Moves towards the adapted parameters: `theta - phi` in place of a gradient.

    Args:
        data: what phi of the outer update is adapted on: `"support"`, or `"episode"` for supports and queries
            together, as in the paper. The loss and the predictions always come from adapting on the supports alone.

    References:
        - Nichol et al. 2018, "On first-order meta-learning algorithms", arXiv:1803.02999
    """

    differentiates = False
    second_order = False

    def __init__(self, data="support", **kwargs):
        super().__init__(**kwargs)
        if data not in ("support", "episode"):
            raise ValueError(f"`data` must be 'support' or 'episode'. Received: data={data!r}.")
        self.data = data

    def __call__(self, task, variables):
        ((params, state),) = task.iterates(variables, stop_gradients=True)
        loss, predictions, state = task.loss(params, state, on="query")
        if self.data == "episode":
            ((params, state),) = task.iterates(
                variables, stop_gradients=True, data="episode", stream=1
            )
        # Only adapting weights are meta-learned here, and they are all of the model's but for those of a start.
        difference = [
            None if i in task.unreached else theta - params[i]
            for i, theta in zip(task.learner.learned, variables, strict=True)
        ]
        return TaskResult(loss, predictions, difference, state)

    def get_config(self):
        return {**super().get_config(), "data": self.data}


@keras.saving.register_keras_serializable("keras_maml")
class Implicit(MetaGradient):
    """Differentiates the minimum of the proximally regularised support loss, not the path to it.

    ```
    (I + H / strength) u = grad L(phi)
    ```

    solved for u. The strength is that of the rule, a `ProximalSGD`.

    | `solver` | iterations that it takes |
    |---|---|
    | `"conjugate_gradient"` | as many as H has clearly different eigenvalues |
    | `"neumann"` | `1 / (learning_rate * strength)` or more |

    Right at the minimum of `support loss + strength / 2 |phi - theta|^2` only. Every step leaves the share
    `1 - learning_rate * (strength + curvature)` of the way to it, so that flat directions are left with
    `exp(-steps * learning_rate * strength)` of theirs. Far from the minimum the gradient is that of another problem,
    the more so the more iterations, and `I + H / strength` may not even be positive definite; conjugate gradients then
    end with the iterate that they have.

    Measured on sinusoids, two ReLU layers of 40, steps of 0.01, 600 outer steps of Adam, loss of about 4.1 before:

    | strength, steps | share of the way left | 2 iterations | 5 iterations |
    |---|---|---|---|
    | 1, 50 | 0.61 | 0.88 | 2.25 |
    | 2, 15 | 0.74 | | 3.28 |
    | 2, 30 | 0.55 | 0.96 | |
    | 2, 50 | 0.37 | 0.79 | |
    | 5, 30 | 0.22 | 0.90 | 1.33 |

    The Neumann series, with `rate = learning_rate * strength`,

    ```
    u = rate * sum_(i = 0 ... iterations) (I - rate * (I + H / strength))^i grad L(phi)
    ```

    converges if and only if all eigenvalues of `learning_rate * (strength + H)` are in (0, 2): where inner steps do.
    Its first terms are what the pull towards theta in so many last steps passes on to theta. A scheduled learning rate
    is that of the last step.

    Args:
        iterations: products with the Hessian, at least 1.
        solver: `"conjugate_gradient"` or `"neumann"`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Rajeswaran et al. 2019, "Meta-learning with implicit gradients", arXiv:1909.04630
        - `"neumann"`: Lorraine et al. 2020, "Optimizing millions of hyperparameters by implicit differentiation",
          arXiv:1911.02590
    """

    differentiates = False

    def __init__(self, iterations=5, solver="conjugate_gradient", **kwargs):
        super().__init__(**kwargs)
        if iterations < 1:
            raise ValueError(f"`iterations` must be at least 1. Received: iterations={iterations}.")
        if solver not in SOLVERS:
            raise ValueError(f"`solver` must be one of {SOLVERS}. Received: solver={solver!r}.")
        self.iterations = iterations
        self.solver = solver

    def check(self, rule, layers, start=None):
        super().check(rule, layers, start)
        if not isinstance(rule, ProximalSGD):
            raise ValueError(
                "`Implicit` differentiates the minimum of a proximally regularised support loss, so it needs "
                f"`rule=ProximalSGD(...)`. Received: rule={type(rule).__name__}."
            )

    def __call__(self, task, variables):
        scale = task.learner.loss_scale
        ((params, state),) = task.iterates(variables, stop_gradients=True)
        def query_loss(values):
            # The moments that supports leave to queries depend on the parameters too.
            return task.loss(values, task.settle(values, state), on="query")

        value, gradient = value_and_gradients(query_loss, params, scale)
        loss, predictions, after = value
        right_side = [
            tf.zeros_like(p) if g is None else g for p, g in zip(params, gradient, strict=True)
        ]

        def support_loss(values):
            return task.loss(values, state, on="support")[0]

        rule = task.learner.rule

        def matrix(vector):
            products = hessian_vector_product(support_loss, params, vector, scale)
            return [v + p / rule.strength for v, p in zip(vector, products, strict=True)]

        if self.solver == "neumann":
            rate = rule.rate(max(task.learner.steps - 1, 0), right_side[0].dtype) * rule.strength
            solution = neumann_series(matrix, right_side, self.iterations, rate)
        else:
            solution = conjugate_gradient(matrix, right_side, self.iterations)
        gradients = [None if gradient[i] is None else solution[i] for i in task.learner.learned]
        return TaskResult(loss, predictions, gradients, after)

    def get_config(self):
        return {**super().get_config(), "iterations": self.iterations, "solver": self.solver}


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


def check_share(name, value):
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value <= 1):
        raise ValueError(f"`{name}` must be a share of the run in (0, 1], or None. Received: {name}={value!r}.")


def check_progress(value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(
            "`progress` must be the share of the run that has passed, a number in [0, 1]. Received: "
            f"progress={value!r}."
        )
