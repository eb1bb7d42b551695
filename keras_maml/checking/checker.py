"""`check`: everything in turn, on one batch, before a run."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_maml import inputs
from keras_maml.checking import adapting, finite_differences
from keras_maml.checking.data import arrays_of, check_data
from keras_maml.checking.findings import CheckReport, Finding
from keras_maml.checking.model import check_layers, check_loss
from keras_maml.layers import statistics_of
from keras_maml.memory import predict_memory
from keras_maml.meta_gradients import Unrolled
from keras_maml.protocols import describe_algorithm, describe_normalisation
from keras_maml.selection import flatten_layers


def check(meta_model, episodes, strict=False, seed=0):
    """Looks for what would make a run wrong, before it: some seconds, and no weight changes.

        print(keras_maml.check(meta_model, train))

    Looks at the first batch, adapts a few of its tasks, and compares the meta-gradient of one with finite differences
    of the whole meta-objective, in float64 if all layers can be cast. Finds:

    | code | what |
    |---|---|
    | `malformed-episodes`, `refused` | shapes that do not fit; a model that cannot be used as it is |
    | `not-finite-data`, `not-finite-loss`, `not-finite-gradient` | NaN, infinities |
    | `bad-weights` | weights that are negative, or all 0 in a task |
    | `labels-out-of-range`, `mismatched-ways`, `classes-without-support` | labels that do not fit the outputs |
    | `leaked-queries` | queries that are supports of the same task |
    | `nothing-to-learn`, `unused-weights`, `no-gradient` | weights that cannot learn |
    | `bilinear-resizing`, `rematerialised-layers`, `no-second-derivative` | layers without right second derivatives |
    | `wrong-meta-gradient` | a meta-gradient that finite differences contradict, whatever the reason |
    | `logits-taken-for-probabilities`, `probabilities-taken-for-logits` | `from_logits` that does not fit the model |
    | `loss-ignores-scale` | a loss that does not depend on the size of the predictions |
    | `inner-loss-grows`, `evaluation-diverges`, `evaluation-steps-far-beyond` | too large or too many inner steps |
    | `untracked-randomness` | dropout that draws the same mask at every step |
    | `moments-of-one-example` | batch normalisation of a single support |

    Args:
        meta_model: a compiled `MetaModel`.
        episodes: a dataset of episode batches, or one batch, as for `fit`.
        strict: whether a verdict other than "fine" is raised.
        seed: of the directions along which gradients are compared, 0 or more.

    Returns:
        A `CheckReport`: `verdict`, `findings`, what becomes of every weight, predicted memory.

    Raises:
        ValueError: if `strict`, with the report as its text; or if `meta_model` is no compiled MetaModel.
    """
    if not hasattr(meta_model, "meta_gradients"):
        raise ValueError(f"`meta_model` must be a `MetaModel`. Received: {type(meta_model).__name__}.")
    meta_model._assert_compile_called("check")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what layers warn of is found here too
        report = _Checker(meta_model, seed).report(episodes)
    if strict and report.verdict != "fine":
        raise ValueError(str(report))
    return report


class _Checker:
    """Collects findings; each stage runs only where those before it left something to run."""

    def __init__(self, meta_model, seed):
        self.meta_model = meta_model
        self.seed = seed
        self.findings = []
        self.variables = []
        self.facts = {}
        self.memory = None

    def report(self, episodes):
        batch = self._batch(episodes)
        if batch is not None and self._built(batch):
            self._look(batch)
        order = sorted(self.findings, key=lambda finding: finding.severity != "error")
        return CheckReport(tuple(order), tuple(self.variables), self.facts, self.memory)

    def _add(self, code, message, remedy, severity="error"):
        if code not in [finding.code for finding in self.findings]:
            self.findings.append(Finding(code, severity, message, remedy))

    def _extend(self, findings):
        for finding in findings:
            self._add(finding.code, finding.message, finding.remedy, finding.severity)

    def _batch(self, episodes):
        """`(x, y, sample_weight)` as tensors."""
        if isinstance(episodes, (tuple, list)):
            batch = (*episodes, None, None)[:3]
        else:
            batch = inputs.first_batch({"x": episodes, "steps": 1}, "x", "steps")
        try:
            if batch is None or batch[1] is None:
                raise ValueError("There is no batch `(x, y)`.")
            batch = tf.nest.map_structure(lambda t: None if t is None else tf.convert_to_tensor(t), tuple(batch))
            inputs.check_shapes(*batch, self.meta_model.model)
            return batch
        except (ValueError, TypeError) as error:
            self._add("malformed-episodes", str(error), "See the docstring of `MetaModel` for what an episode is.")
            return None

    def _built(self, batch):
        """Whether the model could be built and prepared, on numbers that cannot be wrong."""
        x, y, sample_weight = batch
        blank = tf.nest.map_structure(tf.zeros_like, ({k: v for k, v in x.items() if "weight" not in k}, y))
        model = self.meta_model.model
        self._extend(check_layers(model, self.meta_model.meta_gradient.second_order) if model.built else ())
        try:
            self.meta_model._prepare(*blank)
        except Exception as error:  # a user's layer may fail in any way
            first = str(error).strip().split("\n")[0]
            if not any(finding.code == "nothing-to-learn" for finding in self.findings):
                self._add("refused", f"{type(error).__name__}: {first}", "Nothing else can be checked before.")
            return False
        self._extend(check_layers(model, self.meta_model.meta_gradient.second_order))
        return True

    def _look(self, batch):
        meta_model = self.meta_model
        layers = flatten_layers(meta_model.model)
        kinds = [statistics_of(v) for v in layers if isinstance(v, keras.layers.BatchNormalization)]
        outputs = meta_model._label_limit(meta_model._task_loss)
        try:
            self._extend(check_data(arrays_of(batch), outputs, "batch" in kinds))
        except ValueError as error:
            self._add("malformed-episodes", str(error), "See the docstring of `MetaModel` for what an episode is.")
            return
        self.facts = {
            "algorithm": describe_algorithm(meta_model.algorithm),
            "steps": f"{meta_model.algorithm.steps} in training, {meta_model._evaluation_steps} in evaluation",
            "normalisation": describe_normalisation(meta_model.model),
            "task mapping": meta_model.explain_task_mapping(),
        }
        wrong = {finding.code for finding in self.findings if finding.severity == "error"}
        if wrong & {"not-finite-data", "bad-weights", "labels-out-of-range", "nothing-to-learn"}:
            return
        try:
            self._adapt(batch)
        except Exception as error:  # a user's layer may fail in any way
            first = str(error).strip().split("\n")[0]
            self._add("refused", f"{type(error).__name__}: {first}", "The first task could not be adapted to.")

    def _adapt(self, batch):
        meta_model = self.meta_model
        trial = adapting.run(meta_model, adapting.tasks_of(meta_model, *self._cast(batch), training=False))
        self._extend(adapting.check_trial(meta_model, trial))
        middle = np.median(trial.query, 0)
        self.facts["query loss"] = ", ".join(
            f"{loss:.3g} after {steps}" for steps, loss in zip(trial.stations, middle, strict=True)
        ) + f" steps (median of {len(trial.query)} tasks)"
        y, predictions, weight = trial.first
        self._extend(check_loss(meta_model._task_loss, y, predictions, weight, meta_model.model))
        training = next(adapting.tasks_of(meta_model, *self._cast(batch), training=True))
        found, self.variables = adapting.check_gradients(meta_model, training)
        if training.learner.model.strays:
            trial.strays = True
            self._extend(f for f in adapting.check_trial(meta_model, trial) if f.code == "untracked-randomness")
        self._extend(found)
        codes = {finding.code for finding in self.findings if finding.severity == "error"}
        if not codes & {"no-second-derivative", "unused-weights", "not-finite-gradient", "not-finite-loss", "refused"}:
            self._compare(batch)
        if not codes & {"no-second-derivative", "unused-weights", "rematerialised-layers"}:
            self.memory = predict_memory(self.meta_model, *batch)

    def _compare(self, batch):
        estimator = self.meta_model.meta_gradient
        exact = isinstance(estimator, Unrolled) and estimator.truncate is None
        if not exact:
            name = type(estimator).__name__
            self.facts["meta-gradient"] = f"{name} is no gradient of the meta-objective: not compared"
            return
        one = tf.nest.map_structure(lambda t: None if t is None else t[:1], self._cast(batch))
        now = [v.numpy() for v in estimator.variables]
        estimator.anneal(1.0)  # before the end of the run, some are no gradient of the loss that they report
        try:
            found = finite_differences.compare(self.meta_model, *one, self.seed)
        finally:
            for variable, value in zip(estimator.variables, now, strict=True):
                variable.assign(value)
        why = f" (not in float64: {found.reason})" if found.reason else ""
        if found.difference is None:
            self.facts["meta-gradient"] = f"not compared: rounding hides finite differences{why}"
            return
        self.facts["meta-gradient"] = (
            f"finite differences in {found.precision} differ by {found.difference:.1e} of it{why}"
        )
        explained = {"bilinear-resizing", "rematerialised-layers", "inner-loss-grows", "untracked-randomness"}
        if found.difference > found.bound and not explained & {finding.code for finding in self.findings}:
            self._add(
                "wrong-meta-gradient",
                f"The meta-gradient differs from finite differences of the meta-objective ({found.precision}) by "
                f"{100 * found.difference:.2g} %, {100 * found.bound:g} % are tolerated.",
                "Look for layers of your own with `tf.stop_gradient`, `tf.custom_gradient` or a TensorFlow operation "
                "whose second derivative is wrong; or use a first-order algorithm such as `keras_maml.FOMAML()`.",
            )

    def _cast(self, batch):
        """As Keras casts the inputs of a `MetaModel`."""

        def convert(leaf):
            return tf.cast(leaf, self.meta_model.compute_dtype) if leaf.dtype.is_floating else leaf

        return tf.nest.map_structure(lambda leaf: None if leaf is None else convert(leaf), batch)
