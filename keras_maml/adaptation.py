"""One task as pure functions of the meta-learned variables: the functional core.

Symbols: `theta` are the values of the model's trainable variables before adaptation, `phi` after it; `state` are the
values of its non-trainable variables (moments, seeds), threaded from call to call. All are flat lists of tensors,
aligned with the variables of the model. `K` is the number of inner steps.
"""

import dataclasses
import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_maml.inner_loop import MOST_UNROLLED_STEPS, repeat, replace
from keras_maml.layers import statistics_of
from keras_maml.losses import keras_mask
from keras_maml.pure_model import PureModel
from keras_maml.selection import flatten_layers

START_STREAM = 3  # see `Task.state`; 0 to 2 are those of inner steps


@dataclasses.dataclass(frozen=True)
class Learner:
    """Everything that the tasks of a batch have in common.

    Args:
        model: a `PureModel`, the whole model.
        halves: `(body, tail)`, both `PureModel`, where nothing in the body adapts; or `None`.
        mask: for each of the model's trainable variables, whether it adapts.
        rule: the `LearningRule`.
        extra_variables: meta-learned variables beside the model's: those of the rule and the estimator.
        inner_loss: `TaskLoss` on the supports.
        loss: `TaskLoss` on the queries; `None` where only predictions are asked for.
        steps: number of inner steps, K.
        training: whether dropout and the like are on.
        start: the `Start`, or `None`: a task starts from theta.
        reset: positions in theta of what the start sets, in its order; `variables` of a `Task` do not hold them.
        body: `PureModel`, the part of the model whose outputs `Task.features` are; or `None`.
        draws: whether the estimator draws random numbers, so that tasks need a seed though the model draws none.
    """

    model: PureModel
    halves: tuple | None
    mask: tuple
    rule: keras.layers.Layer
    extra_variables: list
    inner_loss: object
    loss: object
    steps: int
    training: bool
    start: keras.layers.Layer | None = None
    reset: tuple = ()
    body: PureModel | None = None
    draws: bool = False

    @functools.cached_property
    def learned(self):
        """Positions in theta of what is meta-learned."""
        return [i for i in range(len(self.model.trainable)) if i not in self.reset]

    @functools.cached_property
    def shares_features(self):
        """Whether what the inner steps begin with is what the start reads: the same part of the model, set by none."""
        if self.halves is None or self.body is None:
            return False
        below, read = (
            # A clone has input layers of other names.
            {v.name for v in flatten_layers(part.function)[1:] if not isinstance(v, keras.layers.InputLayer)}
            for part in (self.halves[0], self.body)
        )
        set_there = {id(self.model.trainable[i]) for i in self.reset} & {id(v) for v in self.body.function.variables}
        return below == read and not set_there

    @functools.cached_property
    def reads_support_moments(self):
        """Whether a layer normalises the queries by the moments of the supports."""
        return any(
            isinstance(layer, keras.layers.BatchNormalization) and statistics_of(layer) == "support"
            for layer in flatten_layers(self.model.function)
        )

    @functools.cached_property
    def counters(self):
        """Positions in the state of the `inner_step` of layers that care which step runs, of the user's own too."""
        layers = flatten_layers(self.model.function)
        counters = {id(layer.inner_step) for layer in layers if hasattr(layer, "inner_step")}
        return [i for i, v in enumerate(self.model.non_trainable) if id(v) in counters]

    def at_step(self, state, number):
        """`state` for calls with weights that have made some number of inner steps."""
        return replace(state, self.counters, [tf.convert_to_tensor(number, tf.int32)] * len(self.counters))

    @functools.cached_property
    def loss_scale(self):
        """Factor on every loss that is differentiated, divided out of the gradient: float16 underflows below 6e-8."""
        half = any(layer.compute_dtype == "float16" for layer in flatten_layers(self.model.function))
        return 1024.0 if half else 1.0


class Constants(NamedTuple):
    """What inner steps read and do not move: theta, `None` where it adapts; the values of the extra variables; what the
    body makes of the inputs, `None` if the model is not cut."""

    theta: list
    extra: list
    features: object


class Carry(NamedTuple):
    """What an inner step moves: the adapting parameters, the model's state, the rule's state."""

    params: list
    state: list
    rule_state: object


class Task:
    """One episode as pure functions of `variables`.

    `variables` is a list of tensors: the values of the model's trainable variables (theta) but for those that a start
    sets, then those of `learner.extra_variables`. Every function here is differentiable in all of them.

    Args:
        learner: the `Learner`.
        support: `(x, y, weight)`, `(S, ...)` each, weight `(S,)` or `None`.
        query: the same with Q in place of S; y may be `None`.
        state: values of the model's non-trainable variables.
        seed: int64 `(2,)`, different for every task, replica and outer step.
        seed_positions: where in `state` the seeds of the model's random layers are.
    """

    def __init__(self, learner, support, query, state, seed=None, seed_positions=()):
        self.learner = learner
        self.support = support
        self.query = query
        self.seed = seed
        self.unreached = set()
        self._features = None
        self._state = state
        self._seed_positions = seed_positions

    def state(self, stream=0):
        """Values of the non-trainable variables before the first step, the seeds made this task's own.

        Args:
            stream: passes through the model that follow on another state should not share masks: one number each.
        """
        state = self.learner.at_step(self._state, 0)
        for position in self._seed_positions:
            seed = state[position]
            # `stateless_fold_in` gives `[hash of the seed, data]`, and every random op adds `[0, 1]`: without the last
            # 0, stream 1 would begin with the second mask of stream 0.
            for data in (tf.constant(stream, tf.int64), self.seed[0], self.seed[1], tf.constant(0, tf.int64)):
                seed = tf.random.experimental.stateless_fold_in(seed, data)
            state[position] = seed
        return state

    def aside(self, state, stream):
        """`state` for a pass through the model beside the sequence of steps: with seeds of the stream's own."""
        own = self.state(stream)
        return replace(state, self._seed_positions, [own[position] for position in self._seed_positions])

    def iterates(
        self, variables, at=None, stop_gradients=False, data="support", stream=0, truncate=None, rematerialize=False
    ):
        """The parameters and state after some numbers of inner steps.

        Args:
            variables: list of tensors.
            at: numbers of steps, ascending; default `(K,)`.
            stop_gradients: whether inner gradients are constants, and no outer gradient need be taken through the
                steps: nothing is kept for one, whatever their number. `truncate=0` keeps what it needs.
            data: `"support"`, or `"episode"` for supports and queries together.
            stream: see `state`.
            truncate: number of last steps whose inner gradients are not constants, at least 0; default all.
            rematerialize: whether the backward pass recomputes those steps, see `inner_loop`.

        Returns:
            A list of `(params, state)`, one for each of `at`.
        """
        learner = self.learner
        at = (learner.steps,) if at is None else at
        theta, extra = self._divide(variables)
        x, y, weight = self.support if data == "support" else self._episode()
        state = self.state(stream)
        shares = learner.shares_features and data == "support"
        if shares:
            x, state = self._below(theta, state, x, weight)
        self._features = x if shares else None
        if learner.start is not None:
            with self._scope(extra):
                theta = learner.start(self, theta)
        if learner.halves is not None and not shares:
            x, state = self._below(theta, state, x, weight)
        forward = learner.model if learner.halves is None else learner.halves[1]
        adapting = [i for i, adapts in enumerate(learner.mask) if adapts]
        with self._scope(extra):
            rule_state = learner.rule.init([theta[i] for i in adapting])
        carry = Carry([theta[i] for i in adapting], state, rule_state)
        fixed = [None if adapts else p for p, adapts in zip(theta, learner.mask, strict=True)]
        # Inputs have a gradient where they come from a body: to ask for that of images would cost as much as a layer.
        constants = Constants(fixed, extra, x if learner.halves else None)
        last = at[-1]
        turn = last if stop_gradients else 0 if truncate is None else max(last - truncate, 0)
        results, index = [], 0
        for end in sorted({*at, turn}):
            step = functools.partial(self._step, forward, adapting, (x, y, weight), index < turn)
            again = rematerialize and index >= turn
            many = stop_gradients and last > MOST_UNROLLED_STEPS
            carry = repeat(step, constants, carry, index, end, not stop_gradients, again, many)
            index = end
            if end in at:
                params, state = replace(theta, adapting, carry.params), learner.at_step(carry.state, end)
                if learner.reads_support_moments:
                    # The moments that normalise the queries are those of the weights that judge them.
                    _, _, state = forward(params, state, x, learner.training, "support", weight)
                results.append((params, state))
        return results

    def _step(self, forward, adapting, data, stop, constants, carry, index):
        """One inner update: a pure function of its last three arguments."""
        learner = self.learner
        theta, extra, features = constants
        x, y, weight = data
        if features is not None:
            x = tf.nest.map_structure(_with_mask_of, x, features)
        start = [tf.stop_gradient(p) for p in carry.params] if stop else carry.params
        before = learner.at_step(carry.state, index)

        def support_loss(values):
            params = replace(theta, adapting, values)
            predictions, penalty, after = forward(params, before, x, learner.training, "support", weight)
            loss = tf.cast(learner.inner_loss(y, predictions, weight), forward.loss_dtype)
            return loss + penalty, after

        (_, state), gradients = value_and_gradients(support_loss, start, learner.loss_scale)
        self.unreached |= {i for i, g in zip(adapting, gradients, strict=True) if g is None}
        gradients = [
            tf.zeros_like(p) if g is None else tf.stop_gradient(g) if stop else g
            for p, g in zip(start, gradients, strict=True)
        ]
        with self._scope(extra):
            rule = learner.rule
            params, rule_state = rule.step(carry.params, rule.clip(gradients), carry.rule_state, index)
        return Carry(list(params), state, rule_state)

    def _below(self, theta, state, x, weight):
        """What the body makes of the inputs, and the state after it."""
        learner = self.learner
        x, _, state = learner.halves[0](theta, state, x, learner.training, "support", weight)
        return x, state

    def _scope(self, extra):
        return keras.StatelessScope(list(zip(self.learner.extra_variables, extra, strict=True)))

    def settle(self, params, state):
        """The state in which queries are judged: with the supports' moments under `params`, if a layer reads them."""
        x, _, weight = self.support
        if not self.learner.reads_support_moments:
            return state
        return self.learner.model(params, state, x, self.learner.training, "support", weight)[2]

    def loss(self, params, state, on):
        """The loss with given parameters.

        Args:
            params: list of tensors, values of the model's trainable variables.
            state: values of its non-trainable variables.
            on: `"support"` or `"query"`.

        Returns:
            `(loss, predictions, state)`: a scalar, `(examples, ...)`, and the values after the call.
        """
        learner = self.learner
        x, y, weight = self.support if on == "support" else self.query
        criterion = learner.inner_loss if on == "support" else learner.loss
        predictions, penalty, state = learner.model(params, state, x, learner.training, on, weight)
        loss = tf.cast(criterion(y, predictions, weight), learner.model.loss_dtype)
        return loss + penalty, predictions, state

    def predict(self, params, state):
        """Predictions on the queries, `(Q, ...)`."""
        x, _, weight = self.query
        return self.learner.model(params, state, x, self.learner.training, "query", weight)[0]

    def features(self, params):
        """What the body makes of the supports, `(S, ...)`, with dropout masks of its own."""
        if self._features is not None:
            return self._features
        x, _, weight = self.support
        learner = self.learner
        return learner.body(params, self.state(START_STREAM), x, learner.training, "support", weight)[0]

    def reset(self, params, values):
        """`params` with other values for what the start sets, in the order of `Start.resets`."""
        return replace(params, self.learner.reset, values)

    def _divide(self, variables):
        learner = self.learner
        count = len(learner.learned)
        theta, extra = list(variables[:count]), list(variables[count:])
        for i in sorted(learner.reset):
            variable = learner.model.trainable[i]
            theta.insert(i, tf.zeros(variable.shape, variable.dtype))
        return theta, extra

    def _episode(self):
        (support_x, support_y, support_weight), (query_x, query_y, query_weight) = self.support, self.query

        def join(a, b):
            return tf.nest.map_structure(lambda u, v: tf.concat([u, tf.cast(v, u.dtype)], 0), a, b)

        weight = None
        if support_weight is not None or query_weight is not None:
            ones = [
                tf.ones([tf.shape(tf.nest.flatten(x)[0])[0]]) if w is None else w
                for x, w in ((support_x, support_weight), (query_x, query_weight))
            ]
            weight = tf.concat([ones[0], tf.cast(ones[1], ones[0].dtype)], 0)
        return join(support_x, query_x), join(support_y, query_y), weight


def _with_mask_of(original, copy):
    """A loop's copy of a tensor, with the mask that Keras hung on the original."""
    mask = keras_mask(original)
    if mask is not None:
        copy._keras_mask = mask
    return copy


def value_and_gradients(function, variables, scale=1.0):
    """A function's value and its gradients.

    Args:
        function: from a list of tensors to a tuple whose first member is a scalar loss.
        variables: list of tensors.
        scale: factor on the loss while it is differentiated, divided out of the gradients.

    Returns:
        `(value, gradients)`: dense tensors, `None` for a variable that the loss does not depend on.
    """
    with tf.GradientTape() as tape:
        tape.watch(variables)
        value = function(variables)
        scaled = value[0] * scale
    return value, unscaled(tape.gradient(scaled, variables), scale)


def unscaled(gradients, scale):
    """Gradients of a loss that was multiplied by `scale`, as dense tensors; `None` stays."""
    # Embedding layers give IndexedSlices; rules and sums do dense arithmetic.
    return [None if g is None else tf.convert_to_tensor(g) / scale for g in gradients]
