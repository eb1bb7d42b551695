"""The Keras shell: `fit`, `evaluate`, `predict` and metrics on batches of episodes."""

import inspect

import keras
import tensorflow as tf

from keras_maml import cards, checks, inputs, resizing
from keras_maml.annealing import with_annealing
from keras_maml.episodes import check_disjoint
from keras_maml.losses import TaskLoss
from keras_maml.metrics import (
    BeforeAdaptation,
    NonFiniteTasksMetric,
    build_metrics,
    merge,
    merged_examples,
    weights_of_finite,
)
from keras_maml.resuming import resume_episodes
from keras_maml.tracing import made_at_once


class Untracked:
    """Holds what a Keras model should not take for its own, nor wrap: layers, dicts."""

    def __init__(self, value):
        self.value = value


class EpisodeModel(keras.Model):
    """A Keras model whose data are batches of episodes; what it does with them is in `MetaModel`.

    A subclass has a base `model` and a `meta_gradient`, and implements `call`, `train_step`, `test_step` and
    `_prepare`, which checks a batch.

    Args:
        log_before: whether logs also carry loss and metrics before adaptation.
        skip_non_finite: whether tasks that are not finite are left out of all means, and counted.
        **kwargs: arguments of `keras.Model`.
    """

    def __init__(self, log_before=False, skip_non_finite=False, **kwargs):
        super().__init__(**kwargs)
        self.log_before = log_before
        self.skip_non_finite = skip_non_finite
        self.non_finite_tasks = NonFiniteTasksMetric() if skip_non_finite else None
        self._before = BeforeAdaptation() if log_before else None
        self._beginnings = Untracked({})
        self._reset = Untracked([])

    @property
    def trainable_weights(self):
        """What is meta-learned: not what a start sets in every task."""
        reset = {id(v) for v in self._reset.value}
        return [v for v in super().trainable_weights if id(v) not in reset]

    @property
    def trainable_variables(self):
        """The same as `trainable_weights`."""
        return self.trainable_weights

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`, on episodes. After `BackupAndRestore`, goes on with the episode that it was at.

        An estimator that changes as the run goes on, such as `MultiStep`, is told so: a
        `keras_maml.callbacks.Anneal` is added to `callbacks` if there is none.

        Episodes of `validation_data` must be of other classes than those of `x`, where builders of
        `keras_maml.episodes` made both. To judge on the classes of training on purpose, pass
        `validation_data.take(-1)`, of which nothing is known.
        """
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        arguments = bound.arguments
        if arguments.get("class_weight") is not None:
            raise ValueError(
                "`class_weight` is not supported: the classes of an episode are numbered anew in every task. Pass a "
                "`sample_weight` (tasks, queries) with the episodes."
            )
        self._assert_compile_called("fit")
        self._check_data(arguments, "x", "steps_per_epoch")
        if arguments.get("validation_data") is not None:
            self._check_data(arguments, "validation_data", "validation_steps")
        data = arguments.get("x")
        parts = {"x": data, "validation_data": arguments.get("validation_data")}
        if all(getattr(part, "plan", None) is not None for part in parts.values()):
            check_disjoint(**parts)
        if not isinstance(data, dict) and getattr(data, "num_batches", None) is None:
            arguments.setdefault("shuffle", False)  # Keras's default is for arrays and finite PyDatasets, else it warns
        callbacks = arguments.get("callbacks")
        if isinstance(callbacks, (list, tuple)):
            # What it writes into the logs is for those that read them: TensorBoard, EarlyStopping.
            arguments["callbacks"] = sorted(callbacks, key=lambda c: not getattr(c, "writes_logs", False))
        arguments["callbacks"] = with_annealing(self, arguments.get("callbacks"), arguments.get("epochs", 1))
        resume_episodes(self, arguments, self._beginnings.value)
        return super().fit(*bound.args, **bound.kwargs)

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`. The loss must have a reduction: a task's loss is one number.

        `jit_compile="auto"` compiles what `explain_task_mapping` says, `False` nothing. It stays off for models with
        max-pooling over overlapping or padded windows, whose second derivatives XLA rounds to bfloat16.
        """
        bound = inspect.signature(super().compile).bind(*args, **kwargs)
        arguments = bound.arguments
        task_loss = TaskLoss(arguments.get("loss"), arguments.get("loss_weights"))
        asked = self._jit_compile_asked = arguments.get("jit_compile", "auto")
        arguments["jit_compile"] = checks.jit_compile(self.model, asked, self.meta_gradient.second_order)
        super().compile(*bound.args, **bound.kwargs)
        self._task_loss = task_loss
        self._asked_metrics = Untracked((arguments.get("metrics"), arguments.get("weighted_metrics")))
        if self._before is not None:
            self._before.compile(arguments.get("metrics"), arguments.get("weighted_metrics"))

    def compile_from_config(self, config):
        # Keras's own refuses a model whose `compile` is not Keras's.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def evaluate(self, *args, **kwargs):
        """As `keras.Model.evaluate`: adapts with `evaluation_steps` and judges on the queries."""
        signature = inspect.signature(super().evaluate)
        if not kwargs.get("_use_cached_eval_dataset"):
            self._assert_compile_called("evaluate")
            self._check_data(signature.bind(*args, **kwargs).arguments, "x", "steps")
        return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """As `keras.Model.predict`: adapts with `evaluation_steps` and predicts the queries, `(T, Q, ...)`."""
        self._check_data(inspect.signature(super().predict).bind(*args, **kwargs).arguments, "x", "steps")
        return super().predict(*args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """As `keras.Model.train_on_batch`; `class_weight` is refused."""
        if class_weight is not None:
            raise ValueError("`class_weight` is not supported. Pass a `sample_weight` (tasks, queries).")
        self._assert_compile_called("train_on_batch")
        self._check_values(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """As `keras.Model.test_on_batch`."""
        self._assert_compile_called("test_on_batch")
        self._check_values(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, return_dict=return_dict)

    def card(self, report, directory, episodes=None, description=None, overwrite=False):
        """Writes a run card, `README.md` and `card.json`: what was trained, on what, with which settings and results.

            meta_model.export("five_way_learner")
            meta_model.card(report, "five_way_learner", episodes=train)

        `card.json` holds the report with the values of every task:
        `keras_maml.EpisodeReport.from_json(json.dumps(card["report"]))`.

        Args:
            report: an `EpisodeReport` of this model as it is now.
            directory: a folder, made if there is none: that of an export, or any other.
            episodes: what was trained on, as for `keras_maml.episodes.describe`, which looks at the first batches.
            description: Markdown for the head of `README.md`: the data, what the model is for, its limits.
            overwrite: whether to replace a `README.md` or a `card.json` that no card wrote.

        Returns:
            The dict that `card.json` holds.

        Raises:
            ValueError: if `report` is none or of another model or of other weights, if the model is not compiled or
                not built, or if files are in the way.
        """
        return cards.write(self, report, directory, episodes, description, overwrite)

    def with_ways(self, ways):
        """A `MetaModel` for tasks of other numbers of classes: the same layers, below an output layer of other units.

        For algorithms whose start sets the whole output layer in every task, such as `keras_maml.ProtoNet()` or
        `Algorithm(..., start=ZeroHead())`. All that is meta-learned is shared, the weights of the rule, the start and
        the estimator too: to train one is to train the other. It is compiled as this one, with the same optimizer.

        Args:
            ways: number of units of the output layer, at least 2: the greatest number of classes of a task.

        Returns:
            A `MetaModel`.

        Raises:
            ValueError: if the output layer is meta-learned or is no `Dense`, if a rule has learned weights for every
                weight of it, or for `ParameterDifference`.
        """
        return resizing.with_ways(self, ways)

    def _check_data(self, arguments, name, steps_name):
        batch = inputs.first_batch(arguments, name, steps_name)
        if batch is not None:
            self._check_values(*batch)

    def _check_values(self, x, y=None, sample_weight=None):
        if isinstance(x, dict) and all(hasattr(t, "shape") for t in tf.nest.flatten(x)):
            with self.distribute_strategy.scope():  # of which the weights of an unbuilt model are
                self._prepare(x, y, sample_weight)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of given predictions, `(T, Q, ...)`, all queries taken for one task; no regularisation losses."""
        merged = [None if part is None else tf.nest.map_structure(merge, part) for part in (y, y_pred, sample_weight)]
        return self._task_loss(*merged)

    def _build_optimizer(self):
        if not self.optimizer.built and not tf.distribute.has_strategy():
            with made_at_once():
                self.optimizer.build(self.trainable_variables)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates metrics with all queries of all tasks, `(T, Q, ...)` each, but for those of weight 0."""
        examples = merged_examples(y, y_pred, sample_weight)
        build_metrics(self, *examples[:2])
        if self._before is not None:
            self._before.build(*examples)
        super().compute_metrics(x, *examples)
        return self.get_metrics_result()

    def _report(self, y, sample_weight, stacked):
        losses = {name: value for name, value in stacked.items() if name.startswith("loss")}
        weight = None
        if self.skip_non_finite:
            weight = stacked["finite"]
            self.non_finite_tasks.update_state(weight)
            sample_weight = weights_of_finite(weight, y, sample_weight)
            losses = {name: tf.where(weight, loss, 0) for name, loss in losses.items()}  # as 0 * NaN is NaN
        if self._before is not None:
            before = merged_examples(y, stacked["predictions_before"], sample_weight)
            self._before.update(losses["loss_before"], *before, weight=weight)
        next(m for m in self.metrics if m.name == "loss").update_state(losses["loss"], sample_weight=weight)
        return self.compute_metrics(None, y, stacked["predictions"], sample_weight)

    def get_metrics_result(self):
        result = super().get_metrics_result()
        if self._before is not None:
            result = {**result, **self._before.result()}
        if self.skip_non_finite:
            # Of no task at all: 0, as Keras has it, would be the best of losses.
            nothing = keras.ops.logical_and(
                self.non_finite_tasks.tasks > 0, self.non_finite_tasks.count >= self.non_finite_tasks.tasks
            )
            result = {
                name: value if name == "non_finite_tasks" else keras.ops.where(nothing, float("nan"), value)
                for name, value in result.items()
            }
        return result

    def reset_metrics(self):
        super().reset_metrics()
        if self._before is not None:
            self._before.reset()
