"""`MetaModel`: a Keras model whose call is a few-shot learner and whose `fit` is meta-learning."""

import warnings

import keras
import tensorflow as tf

from keras_maml import algorithms, checks, export, inputs, mapping_choice
from keras_maml import task_mapping as task_mappings
from keras_maml.adaptation import Learner, Task
from keras_maml.batches import mean_loss, run_tasks
from keras_maml.episode_model import EpisodeModel, Untracked
from keras_maml.heads import started
from keras_maml.lora_weights import LoraWeights, parts_of
from keras_maml.losses import TaskLoss
from keras_maml.pure_model import PureModel
from keras_maml.replicas import scaled, share_of_tasks, write_mean
from keras_maml.selection import adapting_mask, check_names, fingerprint, split
from keras_maml.tracing import made_at_once


@keras.saving.register_keras_serializable("keras_maml")
class MetaModel(EpisodeModel):
    """Wraps any Keras model so that it learns to learn new tasks from a few examples.

    ```python
    meta_model = keras_maml.MetaModel(model, algorithm=keras_maml.MAML(learning_rate=0.4, steps=1))
    meta_model.compile(optimizer="adam", loss="mse")
    meta_model.fit(episodes, steps_per_epoch=1000, epochs=10)
    learner = meta_model.adapt(support_x, support_y)     # one task in, a plain keras.Model out
    ```

    Episodes are `(x, y)` or `(x, y, sample_weight)` with

    - `x = {"support_x": (T, S, ...), "support_y": (T, S, ...), "query_x": (T, Q, ...)}`, and optionally
      `"support_weight": (T, S)`, `"query_weight": (T, Q)`, `"domain": (T,)`, which is for reports and not read here,
    - `y = query_y: (T, Q, ...)`, `sample_weight: (T, Q)`, default the `"query_weight"`, which `predict` reads too,

    for T tasks, S support and Q query examples of a task. The loss of a task is `sum(weight * loss) / sum(weight)`,
    plus the model's regularisation losses at the adapted weights; tasks count equally. Rows of weight 0 reach no loss,
    no metric and no batch moment.

    Stock `BatchNormalization` uses the statistics of the examples in each call, in `fit` and in evaluation alike
    (transductive); `keras_maml.layers.BatchNormalization` offers other ways. Dropout is on in `fit` only, with masks of
    their own for every inner step, task, replica and outer step. Of the model's other state (moving moments, say),
    `fit` keeps the mean over the tasks of a batch; evaluation, prediction and adaptation change nothing.

    Args:
        model: a `keras.Model`, built or not; it is trained in place. All of its `trainable_variables` are meta-learned
            but for those that a `Start` of the algorithm sets.
        algorithm: an `Algorithm`, such as `keras_maml.MAML()`, or the lower-case name of a preset.
        task_mapping: how the tasks run: `"auto"`, `"parallel"`, `"vectorized"`, `"unrolled"` or a `TaskMapping`.
        inner_loss: the loss of the inner steps, as in `compile`; default the compiled loss.
        log_before: whether logs also carry the loss and the metrics before adaptation, as `loss_before` and so on.
        skip_non_finite: whether tasks whose loss, gradient or state is NaN or infinite are left out of all means, of
            gradients, state, loss and metrics, in `fit` and `evaluate`. Logs then carry their number, as
            `non_finite_tasks`. If all tasks of a batch are left out, its gradient is 0.
        name: name of the model.

    Raises:
        ValueError: if parts do not fit together, with the reason and the remedy.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400
    """

    def __init__(
        self,
        model,
        algorithm="maml",
        task_mapping="auto",
        inner_loss=None,
        log_before=False,
        skip_non_finite=False,
        name=None,
    ):
        if not isinstance(model, keras.Model) or isinstance(model, MetaModel):
            raise ValueError(f"`model` must be a `keras.Model` that is not a MetaModel itself. Received: {model!r}.")
        # Inputs, weights and inner updates stay in full precision under a global mixed policy; the model keeps its own.
        dtype = "float64" if model.variable_dtype == "float64" else "float32"
        super().__init__(log_before, skip_non_finite, name=name, dtype=dtype)
        self.model = model
        self.algorithm = algorithms.get(algorithm)
        self.task_mapping = task_mapping
        self.inner_loss = inner_loss
        self.rule, self.meta_gradient, self.start = self.algorithm.parts()
        counter = getattr(self.algorithm, "outer_step", None)  # that of a model of other ways
        self.outer_step = self._counter() if counter is None else counter
        self._mapping = task_mappings.get(task_mapping)
        self._inner_task_loss = None if inner_loss is None else TaskLoss(inner_loss)
        self._task_loss = None
        self._specs, self._started, self._of_ways = Untracked({}), Untracked({}), Untracked({})
        self._output_shape = None
        self._jit_compile_asked = "auto"  # `_jit_compile` is Keras's own, where "auto" has become a bool
        if model.built:
            self._build_parts()

    def _counter(self):
        # Counts batches that were learned from, for dropout masks and to resume; not the optimizer's, as a custom
        # training loop may have an optimizer of its own.
        return self.add_weight(
            name="outer_step",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def build(self, input_shape=None):
        """Does nothing: the base model is built from the first episode, dtypes included."""

    def _build_parts(self):
        mapping_choice.check(self._mapping, self.model)
        checks.check_rows(self.model, self.algorithm)
        self.mask = adapting_mask(self.model, self.algorithm.layers)
        self._fingerprint = fingerprint(self.model)
        self._output_shape = getattr(self.model, "output_shape", self._output_shape)
        adapting = [v for v, adapts in zip(self.model.trainable_variables, self.mask, strict=True) if adapts]
        if self.start is not None:
            self._reset.value, self._started.value = started(self.start, self.model, adapting)
        if not self.rule.built:
            self.rule.build(adapting, self.algorithm.steps)
        if not self.meta_gradient.built:
            self.meta_gradient.build(self.algorithm.steps)
        if self.meta_gradient.second_order:
            checks.prepare_second_order(self.model)
        self._cut()
        if any(True for _ in parts_of(self.model)) and not hasattr(self, "_lora_weights"):
            self._lora_weights = LoraWeights(self.model)
        self.built = True

    def _cut(self):
        moving = all(self.mask) and len(self.model.weights) == len(self.model.trainable_variables)
        halves, no_cut = (None, None) if moving or not any(self.mask) else split(self.model, self.mask)
        self._halves = halves and Untracked((*halves, str(self.model.get_config())))
        if no_cut and not all(self.mask):
            warnings.warn(
                f"Model '{self.model.name}' runs as a whole in every inner step, also the layers below those that "
                f"adapt: {no_cut}.",
                stacklevel=4,
            )

    def _prepare(self, x, y=None, sample_weight=None):
        """Checks a batch of episodes, concrete or being traced, and builds from it what is not built yet."""
        inputs.check_shapes(x, y, sample_weight, self.model)
        if self._output_shape is None:
            with made_at_once():
                self._output_shape = inputs.output_shape(self.model, x["support_x"], self.compute_dtype)
        if not self.built or not hasattr(self, "mask"):
            with made_at_once():
                self._build_parts()
        if fingerprint(self.model) != self._fingerprint:
            raise ValueError(
                f"Model '{self.model.name}' has {len(self.model.trainable_variables)} trainable weights, and they or "
                "frozen layers are not as when the MetaModel was made. Freeze layers first, then make the MetaModel."
            )
        limits = {"support_y": self._label_limit(), "y": self._label_limit(self._task_loss)}
        remedy = "" if self.start is None else " For more classes see `MetaModel.with_ways`."
        inputs.check_values({**x, "y": y, "sample_weight": sample_weight}, limits, remedy)
        if all(map(tf.is_tensor, tf.nest.flatten(x))):  # arrays are cast before a step sees them
            self._specs.value = export.widen(self._specs.value, x)

    def _learner(self, training, steps):
        inner_loss = self._inner_task_loss or self._task_loss
        if inner_loss is None:
            raise ValueError(
                f"MetaModel '{self.name}' has no loss to adapt by. Call `compile(optimizer=..., loss=...)` first, or "
                "pass `inner_loss=` to `MetaModel`."
            )
        if self._halves is not None and self._halves.value[3] != str(self.model.get_config()):
            self._cut()  # a layer was changed: a rate, an activation
        halves = None
        if self._halves is not None:
            clone, body, tail, _ = self._halves.value
            halves = PureModel(body, clone), PureModel(tail, clone)
        own = {id(v) for v in self.model.trainable_variables}
        return Learner(
            model=PureModel(self.model),
            halves=halves,
            mask=self.mask,
            rule=self.rule,
            extra_variables=[v for v in self.trainable_variables if id(v) not in own],
            inner_loss=inner_loss,
            loss=self._task_loss,
            steps=steps,
            training=training,
            draws=self.meta_gradient.draws,
            **self._started.value,
        )

    @property
    def _evaluation_steps(self):
        steps = self.algorithm.evaluation_steps
        return self.algorithm.steps if steps is None else steps

    def _run(self, one_task, x, y=None, sample_weight=None, variables=None, training=False, learns=False, copies=()):
        """See `batches.run_tasks`."""
        variables = inputs.values_of(self.trainable_variables, variables)
        learner = self._learner(training, self.algorithm.steps if training else self._evaluation_steps)
        return run_tasks(
            learner,
            self._mapping_for(variables)[0],
            one_task,
            (x, y, sample_weight),
            variables,
            self.outer_step,
            learned=self.trainable_variables if learns else None,
            copies=copies,
            skip_non_finite=self.skip_non_finite,
        )

    @property
    def _copies(self):
        return ("before",) if self.log_before else ()

    def _mapping_for(self, variables, eager=None):
        eager = tf.executing_eagerly() if eager is None else eager
        asked, second_order = self._jit_compile_asked, self.meta_gradient.second_order
        start = None if self.start is None or self.start.vectorizes else self.start
        return mapping_choice.resolve(self._mapping, self.model, variables, asked, second_order, eager, start)

    def explain_task_mapping(self):
        """Which mapping runs the tasks of a batch in the steps of `fit`, how, and why."""
        if not self.model.built:
            return "Not known yet: the model is built with the first episode."
        step = "eager" if self.run_eagerly else "xla" if self.compiled and self.jit_compile else "graph"
        return mapping_choice.explain(*self._mapping_for(self.trainable_variables, self.run_eagerly), step)

    def call(self, inputs, training=None):
        """Adapts to each task's supports and predicts its queries.

        Args:
            inputs: the dict of the class docstring.
            training: whether dropout is on, and `steps` rather than `evaluation_steps` are made.

        Returns:
            Predictions of the adapted models, `(T, Q, ...)`.
        """
        self._prepare(inputs)

        def one_task(task, variables):
            ((params, state),) = task.iterates(variables, stop_gradients=not training)
            return {"predictions": task.predict(params, state)}, (), ()

        return self._run(one_task, inputs, training=bool(training))[0]["predictions"]

    def adapt(self, support_x, support_y, steps=None, support_weight=None, ways=None):
        """Adapts to one task.

        Args:
            support_x: `(S, ...)`, nested as the model takes it.
            support_y: `(S, ...)`.
            steps: number of inner steps, at least 0; default the algorithm's `evaluation_steps`.
            support_weight: `(S,)` or `None`.
            ways: number of units of the output layer, see `with_ways`; default as in the model.

        Returns:
            A plain `keras.Model` with weights of its own: a clone of the base model, adapted. Where batch normalisation
            uses `"support"` or `"moving"` statistics it became a stock layer that holds those moments, right for any
            batch size; where it uses `"batch"` statistics, `learner(query_x)` on the whole query equals
            `MetaModel.call`, and `predict` needs `batch_size` to cover it. Of weights and moments for each inner step
            it has those of the last.

        Raises:
            ValueError: for supports that are malformed or not finite, labels out of range, a model that cannot be
                cloned, or an adaptation that diverges.
        """
        if ways is not None:
            return self.with_ways(ways).adapt(support_x, support_y, steps, support_weight)
        steps = self._evaluation_steps if steps is None else steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"`steps` must be an integer of at least 0. Received: steps={steps!r}.")
        x = {"support_x": support_x, "support_y": support_y, "query_x": support_x, "support_weight": support_weight}
        x = {name: inputs.to_batch(value, self.compute_dtype) for name, value in x.items() if value is not None}
        self._prepare(x)
        learner = self._learner(False, steps)
        variables = [tf.convert_to_tensor(v) for v in self.trainable_variables]
        state = [tf.convert_to_tensor(v) for v in learner.model.non_trainable]
        support = [tf.nest.map_structure(lambda t: t[0], x.get(k)) if k in x else None for k in export.SUPPORT]
        ((params, state),) = Task(learner, support, (None, None, None), state).iterates(variables, stop_gradients=True)
        return export.specialise(self.model, params, state)

    def export(self, filepath, ways=None):
        """Writes a SavedModel that adapts and predicts by itself; `keras_maml` is not needed to serve it.

        Signatures, for one task a request, stateless, with any number of supports and queries:

        - `serving_default(support_x, support_y, query_x) -> predictions`
        - `adapt(support_x, support_y) -> adapted weights and state`, named by variable path with `_` for `/`
        - `predict(query_x, <outputs of adapt>) -> predictions`

        Args:
            filepath: the folder to write.
            ways: number of units of the output layer, see `with_ways`; default as in the model.

        Raises:
            ValueError: if shapes are not known yet: call the model on an episode first.
        """
        export.save(self if ways is None else self.with_ways(ways), filepath)

    @tf.autograph.experimental.do_not_convert  # as Keras does with `train_step`: traced in less time
    def meta_gradients(self, x, y, sample_weight=None, variables=None):
        """The outer gradient of a batch of episodes, for training loops of your own.

        Dropout masks advance with every call.

        Args:
            x: the dict of the class docstring.
            y: `(T, Q, ...)`.
            sample_weight: `(T, Q)` or `None`.
            variables: values to take in place of those of `trainable_variables`, arrays or tensors, or `None`.

        Returns:
            `(loss, predictions, gradients)`: the mean of the tasks' losses, `(T, Q, ...)`, and a list aligned with
            `trainable_variables`, the mean over the tasks.
        """
        self._assert_compile_called("meta_gradients")
        self._prepare(x, y, sample_weight)
        stacked, gradients, _ = self._learn(x, y, sample_weight, variables)
        self.outer_step.assign_add(1)
        return mean_loss(stacked), stacked["predictions"], gradients

    def _learn(self, x, y, sample_weight, variables=None):
        def one_task(task, variables):
            try:
                result = self.meta_gradient(task, variables)
            except LookupError as error:
                raise ValueError(
                    f"An operation of model '{self.model.name}' has no second derivative in TensorFlow: {error}. Use "
                    "another layer, or a first-order algorithm such as `keras_maml.FOMAML()`."
                ) from error
            checks.check_gradients(self.trainable_variables, result.gradients, self.meta_gradient)
            stacked = {"predictions": result.predictions, "loss": result.loss, **self._before_task(task, variables)}
            return stacked, list(result.gradients), result.state

        def gradients_at(values):
            return self._run(one_task, x, y, sample_weight, values, training=True, learns=True, copies=self._copies)

        return self.meta_gradient.of_batch(gradients_at, inputs.values_of(self.trainable_variables, variables))

    def _before_task(self, task, variables):
        if not self.log_before:
            return {}
        ((params, state),) = task.iterates(variables, at=(0,), stop_gradients=True, stream=2)
        loss, predictions, _ = task.loss(params, state, on="query")
        return {"predictions_before": predictions, "loss_before": loss}

    def train_step(self, data):
        """One outer update."""
        x, y, sample_weight = inputs.unpack(data)
        self._prepare(x, y, sample_weight)
        checks.check_learned(self.model, self.trainable_variables)
        stacked, gradients, updates = self._learn(x, y, sample_weight)
        self._build_optimizer()
        share = share_of_tasks(stacked)
        # The optimizer sums over replicas, and divides by the scale that it gives to losses.
        gradients = scaled(gradients, self.optimizer.scale_loss(tf.ones([])) * share)
        self.optimizer.apply(gradients, self.trainable_variables)
        write_mean(updates, share)
        self.outer_step.assign_add(1)
        return self._report(y, sample_weight, stacked)

    def test_step(self, data):
        """Adapts to the supports and judges on the queries."""
        x, y, sample_weight = inputs.unpack(data)
        self._prepare(x, y, sample_weight)

        def one_task(task, variables):
            ((params, state),) = task.iterates(variables, stop_gradients=True)
            loss, predictions, _ = task.loss(params, state, on="query")
            return {"predictions": predictions, "loss": loss, **self._before_task(task, variables)}, (), ()

        return self._report(y, sample_weight, self._run(one_task, x, y, sample_weight, copies=self._copies)[0])

    def _label_limit(self, loss=None):
        loss = loss or self._inner_task_loss or self._task_loss
        return loss and loss.label_limit(self._output_shape)

    def get_config(self):
        mapping = self.task_mapping
        check_names(self.model, self.algorithm.layers)
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "algorithm": keras.saving.serialize_keras_object(self.algorithm),
            "task_mapping": mapping if isinstance(mapping, str) else keras.saving.serialize_keras_object(mapping),
            "inner_loss": keras.saving.serialize_keras_object(self.inner_loss),
            "log_before": self.log_before,
            "skip_non_finite": self.skip_non_finite,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        with keras.saving.custom_object_scope(custom_objects or {}):
            return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})
