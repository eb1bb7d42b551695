"""Keras callbacks: curves and learned rates in the logs, stops where tasks are not finite, schedules of estimators."""

import math
import warnings

import keras
import numpy as np

from keras_maml.annealing import Anneal as Anneal
from keras_maml.arguments import check_whole
from keras_maml.episodes.pipeline import Plan
from keras_maml.evaluation import Evaluator, check_steps
from keras_maml.protocols import describe_rate


class AdaptationCurve(keras.callbacks.Callback):
    """Judges the model on fixed episodes at the end of epochs, after several numbers of inner steps.

        curve = keras_maml.callbacks.AdaptationCurve(validation, tasks=100, steps=(0, 1, 5))
        stop = keras.callbacks.EarlyStopping(monitor="accuracy_after_5", mode="max", patience=3)
        meta_model.fit(train, steps_per_epoch=500, epochs=20, callbacks=[curve, stop])

    Means over the tasks go into the logs of the epoch as `<metric>_after_<steps>`, such as `accuracy_after_5`, and so
    into the history, `keras.callbacks.TensorBoard`, `CSVLogger`, `EarlyStopping` (which wants a `mode` for such names)
    and the like. `fit` runs this callback before those, wherever it stands.

    `reports` holds the reports: a dict by epoch, counted from 0.

    Args:
        episodes: the same episodes at every epoch: a dataset made with `seed=keras_maml.episodes.fixed(n)` or with an
            integer seed; see `keras_maml.evaluate_episodes`.
        tasks, steps: see `keras_maml.evaluate_episodes`.
        every: number of epochs from one evaluation to the next, at least 1. Judged are epochs 0, `every`, 2 `every` and
            so on, and the last of the `epochs` that `fit` was asked for; the logs of others have no such entries.

    Raises:
        ValueError: for arguments out of range, or a dataset of fresh episodes.
    """

    writes_logs = True

    def __init__(self, episodes, tasks=100, steps=(0, 1, 5), every=1):
        super().__init__()
        check_whole(1, every=every)
        plan = getattr(episodes, "plan", None)
        if isinstance(plan, Plan) and plan.seed is None:
            raise ValueError(
                "`episodes` has `seed=None`: its tasks are others at every epoch, and a curve over them would show "
                "their differences. Pass `seed=keras_maml.episodes.fixed(n)` to its builder."
            )
        self.episodes = episodes
        self.tasks = tasks
        self.steps = check_steps(steps)
        self.every = every
        self.reports = {}
        self._evaluator = None

    def on_train_begin(self, logs=None):
        # Made anew for each `fit`: the model may have been compiled with other metrics in between.
        self._evaluator = Evaluator(self.model, self.steps)
        self._evaluator.check(self.episodes, self.tasks)

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params.get("epochs")
        if epoch % self.every and not last:
            return
        report = self.reports[epoch] = self._evaluator.report(self.episodes, self.tasks, verbose=0)
        if logs is not None:
            for metric in report.metrics:
                for steps in report.steps:
                    logs[f"{metric}_after_{steps}"] = report.summary(metric, steps).mean


class LearnedRates(keras.callbacks.Callback):
    """Logs what the learning rule has learned, at the end of every epoch.

        meta_model = keras_maml.MetaModel(model, keras_maml.MetaSGD(0.1))
        meta_model.fit(train, callbacks=[keras_maml.callbacks.LearnedRates(), keras.callbacks.TensorBoard("logs")], ...)

    The mean, the least and the greatest number of every weight of the rule go into the logs, and so into the history,
    `keras.callbacks.TensorBoard`, `CSVLogger` and the like:

    - of rates, one tensor for each adapting weight, as steps are made with them (after `softplus`, say), by the path of
      that weight: `rate/dense/kernel/mean`, `rate/dense/kernel/min`, `rate/dense/kernel/max`,
    - of what other rules learn, matrices or a net, as it is: `rule/<its own path>/mean` and so on.

    Raises:
        ValueError: at the start of `fit`, if the rule learns nothing.
    """

    writes_logs = True

    def on_train_begin(self, logs=None):
        rule = self.model.rule
        if not rule.learned:
            raise ValueError(
                f"`LearnedRates` has nothing to log: `{type(rule).__name__}` learns no weights. Leave it out, or use a "
                "rule that does, such as `LearnedSGD`, as `keras_maml.MetaSGD()` has."
            )

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        for name, values in self._named():
            logs.update({f"{name}/{key}": float(getattr(np, key)(values)) for key in ("mean", "min", "max")})

    def _named(self):
        rule, model = self.model.rule, self.model.model
        if hasattr(rule, "learned_rates"):
            adapting = [v for v, adapts in zip(model.trainable_variables, self.model.mask, strict=True) if adapts]
            pairs = zip(adapting, rule.learned_rates(), strict=True)
            kind, prefix = "rate", f"{model.name}/"
        else:
            pairs = ((v, v) for v in rule.trainable_variables)
            kind, prefix = "rule", f"{rule.name}/"
        taken = set()
        for variable, values in pairs:
            name = base = f"{kind}/{variable.path.removeprefix(prefix)}"
            while name in taken:  # paths are not unique
                name = f"{base}_{1 + int(name[len(base) + 1 :] or 0)}"
            taken.add(name)
            yield name, np.asarray(values)


class NonFiniteTasks(keras.callbacks.Callback):
    """Stops `fit` where too many tasks have a loss or gradient that is NaN or infinite.

        meta_model = keras_maml.MetaModel(model, algorithm, skip_non_finite=True)
        meta_model.fit(train, callbacks=[keras_maml.callbacks.NonFiniteTasks(share=0.05)], ...)

    With `skip_non_finite=True` the model leaves such tasks out and counts them, and this callback looks at their share
    of the tasks of an epoch. Without it a single one makes all weights NaN: `fit` is then stopped at the first.

    Args:
        share: greatest share of tasks, in [0, 1).
        tasks: number of tasks of an epoch, at least 1, before which no share is judged but at the end of the epoch.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(self, share=0.1, tasks=100):
        super().__init__()
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"`share` must be a number in [0, 1). Received: share={share!r}.")
        check_whole(1, tasks=tasks)
        self.share = share
        self.tasks = tasks
        self._counted = 0, 0

    def on_epoch_begin(self, epoch, logs=None):
        self._counted = 0, 0

    def on_train_batch_end(self, batch, logs=None):
        counted = getattr(self.model, "non_finite_tasks", None)
        if counted is not None:  # read now, as validation counts anew
            self._counted = int(counted.count.numpy()), int(counted.tasks.numpy())
        self._look(logs, self.tasks, f"after batch {batch} of the epoch")

    def on_epoch_end(self, epoch, logs=None):
        self._look(logs, 1, f"in epoch {epoch}")

    def _look(self, logs, least, when):
        if self.model.stop_training:
            return
        if getattr(self.model, "non_finite_tasks", None) is None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                self._stop(
                    f"the loss is {float(loss)} {when}: at least one task was not finite, and now the weights are not. "
                    "Begin anew with `MetaModel(..., skip_non_finite=True)`, which leaves such tasks out"
                )
            return
        count, tasks = self._counted
        if tasks >= least and count > self.share * tasks:
            self._stop(
                f"{count} of {tasks} tasks ({100 * count / tasks:.0f} %) had a loss or gradient that is NaN or "
                f"infinite {when}, and share={self.share} was allowed"
            )

    def _stop(self, what):
        rate = describe_rate(self.model.rule)
        warnings.warn(
            f"Training stops: {what}. Most often inner steps are too large (learning_rate={rate} here, "
            f"{self.model.algorithm.steps} steps): try a third of the rate, or `clipnorm=10` on the algorithm. "
            "`keras_maml.check(meta_model, episodes)` looks for other reasons.",
            stacklevel=3,
        )
        self.model.stop_training = True
