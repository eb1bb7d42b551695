"""What inner steps do to a few tasks: whether the loss falls, and which weights get a meta-gradient."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_maml.adaptation import Task
from keras_maml.checking.findings import Finding, VariableReport
from keras_maml.protocols import describe_rate
from keras_maml.selection import seed_variables

MOST_TASKS = 4
MOST_STATIONS = 8
MOST_STEPS = 50  # of an evaluation
MUCH = 2.0  # times the loss before


@dataclasses.dataclass
class Trial:
    """Losses of some tasks at some numbers of inner steps.

    Args:
        stations: numbers of steps, ascending from 0.
        support, query: `(tasks, stations)`.
        strays: whether the model changes variables that it does not track.
        first: predictions `(Q, ...)`, y and weight of the first task before adaptation.
    """

    stations: tuple
    support: np.ndarray
    query: np.ndarray
    strays: bool
    first: tuple


def tasks_of(meta_model, x, y, sample_weight, training):
    """The first tasks of a batch as `Task`s."""
    learner = meta_model._learner(training, meta_model.algorithm.steps)
    state = [tf.convert_to_tensor(v) for v in learner.model.non_trainable]
    seeds = {id(v) for v in seed_variables(learner.model.function)}
    positions = [i for i, v in enumerate(learner.model.non_trainable) if id(v) in seeds]
    count = min(MOST_TASKS, len(tf.nest.flatten(x)[0]))
    for t in range(count):

        def of_task(part, t=t):
            return None if part is None else tf.nest.map_structure(lambda leaf: leaf[t], part)

        support = of_task(x["support_x"]), of_task(x["support_y"]), of_task(x.get("support_weight"))
        weight = of_task(x.get("query_weight") if sample_weight is None else sample_weight)
        seed = tf.constant([0, t], tf.int64)
        yield Task(learner, support, (of_task(x["query_x"]), of_task(y), weight), state, seed, positions)


def run(meta_model, tasks):
    """A `Trial` of `Task`s."""
    most = max(meta_model.algorithm.steps, min(meta_model._evaluation_steps, MOST_STEPS))
    stations = tuple(sorted({0, meta_model.algorithm.steps, *np.linspace(0, most, MOST_STATIONS).astype(int).tolist()}))
    variables = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
    support, query, first, strays = [], [], None, False
    for task in tasks:
        rows = []
        for params, state in task.iterates(variables, at=stations, stop_gradients=True):
            loss, predictions, _ = task.loss(params, state, on="query")
            rows.append((float(task.loss(params, state, on="support")[0]), float(loss)))
            strays |= task.learner.model.strays
            if first is None:
                first = task.query[1], predictions, task.query[2]
        support.append([row[0] for row in rows])
        query.append([row[1] for row in rows])
    return Trial(stations, np.array(support), np.array(query), strays, first)


def check_trial(meta_model, trial):
    """Findings of a `Trial`."""
    steps = meta_model.algorithm.steps
    rate = describe_rate(meta_model.rule)
    where = trial.stations.index(steps)
    before, after = trial.support[:, 0], trial.support[:, where]
    highest = trial.support[:, : where + 1].max(1)  # steps too large may throw the loss up, and down again
    tasks = len(before)
    # Losses may be negative.
    grown = int((~(after <= before) | ~(highest - before <= (MUCH - 1) * np.abs(before))).sum())
    broken = int((~np.isfinite(before) | ~np.isfinite(trial.query[:, 0])).sum())
    if broken:
        yield Finding(
            "not-finite-loss",
            "error",
            f"The loss of {broken} of {tasks} tasks is NaN or infinite before any step.",
            "Scale the inputs to about 1, and look at the initial weights and the loss.",
        )
    elif grown * 2 > tasks:
        yield Finding(
            "inner-loss-grows",
            "error",
            f"Within {steps} inner steps the loss on the very supports grows in {grown} of {tasks} tasks (median "
            f"{np.median(before):.3g} before, {np.median(after):.3g} after, {np.median(highest):.3g} at most).",
            f"Lower the inner learning rate (learning_rate={rate} here; try a third), take fewer `steps`, scale the "
            "inputs to about 1, or pass `clipnorm=` to the algorithm.",
        )
    else:
        yield from _check_evaluation(trial, steps, before, after)
    if meta_model._evaluation_steps > 10 * max(steps, 1):
        yield Finding(
            "evaluation-steps-far-beyond",
            "warning",
            f"Evaluation makes {meta_model._evaluation_steps} inner steps, training {steps}: weights that were "
            "learned for a few steps often diverge after many.",
            "Train with more `steps`, or look at `keras_maml.evaluate_episodes` at several numbers of steps first.",
        )
    if trial.strays:
        yield Finding(
            "untracked-randomness",
            "error",
            f"Model '{meta_model.model.name}' changes variables that it does not track, most likely Keras's global "
            "seed generator: a dropout without a seed of its own draws one mask for all steps and tasks.",
            "Give the layer a `keras.random.SeedGenerator` attribute and pass it as `seed`.",
        )


def _check_evaluation(trial, steps, before, after):
    last = trial.support[:, -1]
    worse = int((~(last <= np.maximum(before, after))).sum())
    if worse * 2 > len(last):
        yield Finding(
            "evaluation-diverges",
            "warning",
            f"After {trial.stations[-1]} steps, as in evaluation, the loss on the supports is larger than before in "
            f"{worse} of {len(last)} tasks; after {steps}, as in training, it is not.",
            "Train with more `steps`, or evaluate with fewer (`evaluation_steps=`).",
        )


def check_gradients(meta_model, task):
    """`(findings, VariableReports)` of one task's meta-gradient."""
    variables = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
    masked = zip(meta_model.model.trainable_variables, meta_model.mask, strict=True)
    adapting = {id(variable) for variable, adapts in masked if adapts}
    try:
        gradients = meta_model.meta_gradient(task, variables).gradients
    except LookupError as error:
        finding = Finding(
            "no-second-derivative",
            "error",
            f"An operation of model '{meta_model.model.name}' has no second derivative in TensorFlow: {error}.",
            "Use another layer, or a first-order algorithm such as `keras_maml.FOMAML()`.",
        )
        return [finding], _variables(meta_model, [None] * len(variables), adapting, "not computed")
    rows = _variables(meta_model, gradients, adapting, "the loss does not depend on it")
    missing = [v.path for v, g in zip(meta_model.trainable_variables, gradients, strict=True) if g is None]
    found = []
    if missing:
        found.append(
            Finding(
                "unused-weights",
                "error",
                f"Weights {missing} get no meta-gradient: the loss does not depend on them.",
                "Use their layers in the model, or freeze them (`trainable = False`) before making the MetaModel.",
            )
        )
    sizes = [float(tf.reduce_max(tf.abs(g))) for g in gradients if g is not None]
    if sizes and not np.isfinite(sizes).all():
        found.append(
            Finding(
                "not-finite-gradient",
                "error",
                "The meta-gradient of the first task is NaN or infinite.",
                "Lower the inner learning rate, scale the inputs, or look for a division by 0 or a square root of 0.",
            )
        )
    elif sizes and max(sizes) == 0:
        found.append(
            Finding(
                "no-gradient",
                "error",
                "The meta-gradient of the first task is 0 for every weight: nothing will be learned.",
                "Look for dead ReLUs, a loss that is constant, or labels that are all the same.",
            )
        )
    return found, rows


def _variables(meta_model, gradients, adapting, why_none):
    rows = []
    for variable, gradient in zip(meta_model.trainable_variables, gradients, strict=True):
        size = None if gradient is None else float(tf.sqrt(tf.reduce_mean(tf.square(tf.cast(gradient, tf.float64)))))
        # A bias before a normalisation, say: what is added is subtracted again.
        remark = why_none if gradient is None else "cancels out, or a dead unit" if size == 0 else ""
        rows.append(VariableReport(variable.path, tuple(variable.shape), id(variable) in adapting, size, remark))
    return rows
