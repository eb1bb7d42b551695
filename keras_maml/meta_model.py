"""`MetaModel`: a Keras model whose call is a few-shot learner and whose `fit` is meta-learning."""

import inspect
import warnings

import keras
import tensorflow as tf

from keras_maml import algorithms, export, inputs, task_mapping
from keras_maml.adaptation import Learner, PureModel, Task
from keras_maml.callbacks import BeforeAdaptation, resume_episodes
from keras_maml.layers import statistics_of
from keras_maml.losses import TaskLoss, keras_mask
from keras_maml.meta_gradients import Unrolled
from keras_maml.selection import adapting_mask, flatten_layers, seed_variables, split


@keras.saving.register_keras_serializable("keras_maml")
class MetaModel(keras.Model):
    """Wraps any Keras model so that it learns to learn new tasks from a few examples.

    ```python
    meta_model = keras_maml.MetaModel(model, algorithm=keras_maml.MAML(learning_rate=0.4, steps=1))
    meta_model.compile(optimizer="adam", loss="mse")
    meta_model.fit(episodes, steps_per_epoch=1000, epochs=10)
    learner = meta_model.adapt(support_x, support_y)     # one task in, a plain keras.Model out
    ```

    Episodes are `(x, y)` or `(x, y, sample_weight)` with

    - `x = {"support_x": (T, S, ...), "support_y": (T, S, ...), "query_x": (T, Q, ...)}`, and optionally
      `"support_weight": (T, S)`,
    - `y = query_y: (T, Q, ...)`, `sample_weight: (T, Q)`,

    for T tasks, S support and Q query examples of a task. The loss of a task is `sum(weight * loss) / sum(weight)`, plus
    the model's regularisation losses at the adapted weights; tasks count equally. Rows of weight 0 reach no loss, no
    metric and no batch moment.

    Stock `BatchNormalization` uses the statistics of the examples in each call, in `fit` and in evaluation alike
    (transductive); `keras_maml.layers.BatchNormalization` offers other ways. Dropout is on in `fit` only, with masks of
    their own for every inner step, task, replica and outer step. Of the model's other state (moving moments, say),
    `fit` keeps the mean over the tasks of a batch; evaluation, prediction and adaptation change nothing.

    Args:
        model: a `keras.Model`, built or not; it is trained in place. All of its `trainable_variables` are meta-learned.
        algorithm: an `Algorithm`, such as `keras_maml.MAML()`, or the lower-case name of a preset.
        task_mapping: how the tasks of a batch run: `"auto"`, `"parallel"`, `"vectorized"` or a `TaskMapping`.
        inner_loss: the loss of the inner steps, as in `compile`; default the compiled loss.
        log_before: whether logs also carry the loss and the metrics before adaptation, as `loss_before` and so on.
        name: name of the model.

    Raises:
        ValueError: if parts do not fit together, with the reason and the remedy.

    References:
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400
    """

    def __init__(self, model, algorithm="maml", task_mapping="auto", inner_loss=None, log_before=False, name=None):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a `keras.Model`. Received: {model!r}.")
        # Inputs, weights and inner updates stay in full precision under a global mixed policy; the model keeps its own.
        super().__init__(name=name, dtype="float64" if model.variable_dtype == "float64" else "float32")
        self.model = model
        self.algorithm = algorithms.get(algorithm)
        self.task_mapping = task_mapping
        self.inner_loss = inner_loss
        self.log_before = log_before
        self.rule = _copy(self.algorithm.rule)
        self.meta_gradient = _copy(self.algorithm.meta_gradient)
        # Counts batches that were learned from, for dropout masks and to resume; not the optimizer's, as a custom
        # training loop may have an optimizer of its own.
        self.outer_step = self.add_weight(
            name="outer_step", shape=(), dtype="int64", initializer="zeros", trainable=False, aggregation="only_first_replica"
        )
        self._mapping = _task_mapping(task_mapping)
        self._inner_task_loss = None if inner_loss is None else TaskLoss(inner_loss)
        self._task_loss = None
        self._before = BeforeAdaptation() if log_before else None
        self._specs = {}
        if model.built:
            self._build_parts()

    # ----------------------------------------------------------------------------------------------------- building

    def build(self, input_shape=None):
        """Does nothing: the base model is built from the first episode, dtypes included."""

    def _build_parts(self):
        self.mask = adapting_mask(self.model, self.algorithm.layers)
        adapting = [v for v, adapts in zip(self.model.trainable_variables, self.mask, strict=True) if adapts]
        if not self.rule.built:
            self.rule.build(adapting, self.algorithm.steps)
        halves, self._no_split = (None, "everything adapts") if all(self.mask) else split(self.model, self.mask)
        self._halves = halves and _Untracked(halves)
        self.built = True

    def _ensure_built(self, x):
        """Builds what is not built yet from an episode batch, concrete or being traced."""
        if not self.model.built:

            def symbolic(tensor):
                shape = (None, *tensor.shape[2:])
                return keras.KerasTensor(shape, keras.backend.standardize_dtype(tensor.dtype))

            with tf.init_scope():
                self.model(tf.nest.map_structure(symbolic, x["support_x"]))
        if not self.built or not hasattr(self, "mask"):
            with tf.init_scope():
                self._build_parts()
        if len(self.mask) != len(self.model.trainable_variables):
            raise ValueError(
                f"Model '{self.model.name}' has {len(self.model.trainable_variables)} trainable weights, and had "
                f"{len(self.mask)} when the MetaModel was made. Freeze layers first, then make the MetaModel."
            )
        for name, value in x.items():
            self._specs[name] = tf.nest.map_structure(lambda t: tf.TensorSpec((None, *t.shape[2:]), t.dtype), value)

    # ------------------------------------------------------------------------------------------- episodes to tasks

    def _learner(self, training, steps):
        inner_loss = self._inner_task_loss or self._task_loss
        if inner_loss is None:
            raise ValueError(
                f"MetaModel '{self.name}' has no loss to adapt by. Call `compile(optimizer=..., loss=...)` first, or pass "
                "`inner_loss=` to `MetaModel`."
            )
        halves = None
        if self._halves is not None:
            clone, body, tail = self._halves.value
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
        )

    @property
    def _evaluation_steps(self):
        steps = self.algorithm.evaluation_steps
        return self.algorithm.steps if steps is None else steps

    def _run(self, one_task, x, y=None, sample_weight=None, variables=None, averaged=(), training=False):
        """Maps `one_task(task, variables) -> (stacked, averaged)` over the tasks of a batch.

        `stacked` is a dict with `"predictions"`, and otherwise scalars; `averaged` holds tensors shaped as `averaged`.
        """
        learner = self._learner(training, self.algorithm.steps if training else self._evaluation_steps)
        if variables is None:
            variables = [tf.convert_to_tensor(v) for v in self.trainable_variables]
        state = [tf.convert_to_tensor(v) for v in learner.model.non_trainable]
        seeds = {id(v) for v in seed_variables(self.model)}
        positions = [i for i, v in enumerate(learner.model.non_trainable) if id(v) in seeds]
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        batch_seed = tf.stack([tf.cast(self.outer_step, "int64"), tf.cast(replica, "int64")])
        episodes = {"support": [x["support_x"], x["support_y"]], "query": [x["query_x"]]}
        if y is not None:
            episodes["query"].append(y)
        for name, weight in (("support_weight", x.get("support_weight")), ("query_weight", sample_weight)):
            if weight is not None:
                episodes[name] = tf.cast(weight, self.compute_dtype)

        def function(episode, index):
            support = (*episode["support"], episode.get("support_weight"))
            query = (episode["query"][0], None if y is None else episode["query"][1], episode.get("query_weight"))
            seed = None
            if positions:
                seed = tf.random.experimental.stateless_fold_in(batch_seed, tf.cast(index, "int64"))
            stacked, means = one_task(Task(learner, support, query, state, seed, positions), variables)
            for name in [name for name in stacked if name.startswith("predictions")]:
                masks = tf.nest.map_structure(keras_mask, stacked[name])
                if any(mask is not None for mask in tf.nest.flatten(masks)):
                    stacked[f"mask_of_{name}"] = masks
            return stacked, means

        specs = self._output_specs(learner, x["query_x"], state, averaged, training, y is not None)
        stacked, means = self._mapping_for(variables)(function, episodes, specs)
        for name in [name for name in stacked if name.startswith("mask_of_")]:
            for tensor, mask in zip(
                tf.nest.flatten(stacked[name.removeprefix("mask_of_")]), tf.nest.flatten(stacked[name]), strict=True
            ):
                tensor._keras_mask = mask
        return stacked, means

    def _output_specs(self, learner, query_x, state, averaged, training, with_loss):
        def forward(params, state, query_x):
            predictions, _, _ = learner.model(params, state, query_x, training, "query")
            masks = tf.nest.map_structure(keras_mask, predictions)
            masked = any(mask is not None for mask in tf.nest.flatten(masks))
            return (predictions, masks) if masked else (predictions,)

        def spec(tensor):
            return tf.TensorSpec(tensor.shape, tensor.dtype)

        example = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), query_x)
        params = [tf.TensorSpec(v.shape, v.dtype) for v in learner.model.trainable]
        traced = tf.function(forward, autograph=False).get_concrete_function(
            params, [spec(t) for t in state], example
        )
        predictions, *mask = tf.nest.map_structure(spec, traced.structured_outputs)
        stacked = {"predictions": predictions}
        if mask:
            stacked["mask_of_predictions"] = mask[0]
        if with_loss:
            stacked["loss"] = tf.TensorSpec((), params[0].dtype)
            if self.log_before:
                stacked.update({f"{name}_before": value for name, value in stacked.items()})
        return stacked, tf.nest.map_structure(spec, averaged)

    def _mapping_for(self, variables):
        if self._mapping is None:
            return task_mapping.Parallel() if tf.executing_eagerly() else task_mapping.choose(self.model, variables)[0]
        if isinstance(self._mapping, task_mapping.Vectorized) and task_mapping.rough_under_xla(self.model):
            return task_mapping.Vectorized(jit_compile=False)
        return self._mapping

    def explain_task_mapping(self):
        """Which mapping runs the tasks of a batch in compiled steps, and why: one sentence."""
        if self._mapping is not None:
            return f"{type(self._mapping).__name__}: chosen by `task_mapping`."
        if not self.model.built:
            return "Not chosen yet: the model is built with the first episode."
        mapping, reason = task_mapping.choose(self.model, self.trainable_variables)
        return f"{type(mapping).__name__}: {reason}."

    # ----------------------------------------------------------------------------------------------- few-shot learner

    def call(self, inputs, training=None):
        """Adapts to each task's supports and predicts its queries.

        Args:
            inputs: the dict of the class docstring.
            training: whether dropout is on, and `steps` rather than `evaluation_steps` are made.

        Returns:
            Predictions of the adapted models, `(T, Q, ...)`.
        """
        _check_batch(self, inputs)
        self._ensure_built(inputs)

        def one_task(task, variables):
            ((params, state),) = task.iterates(variables, stop_gradients=not training)
            return {"predictions": task.predict(params, state)}, ()

        return self._run(one_task, inputs, training=bool(training))[0]["predictions"]

    def adapt(self, support_x, support_y, steps=None, support_weight=None):
        """Adapts to one task.

        Args:
            support_x: `(S, ...)`, nested as the model takes it.
            support_y: `(S, ...)`.
            steps: number of inner steps, at least 0; default the algorithm's `evaluation_steps`.
            support_weight: `(S,)` or `None`.

        Returns:
            A plain `keras.Model` with weights of its own: a clone of the base model, adapted. Where batch normalisation
            uses `"support"` or `"moving"` statistics it became a stock layer that holds those moments, right for any
            batch size; where it uses `"batch"` statistics, `learner(query_x)` on the whole query equals
            `MetaModel.call`, and `predict` needs `batch_size` to cover it.

        Raises:
            ValueError: for supports that are malformed or not finite, labels out of range, a model that cannot be
                cloned, or an adaptation that diverges.
        """
        steps = self._evaluation_steps if steps is None else steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"`steps` must be an integer of at least 0. Received: steps={steps!r}.")
        x = {"support_x": support_x, "support_y": support_y, "query_x": support_x, "support_weight": support_weight}
        x = {name: self._to_batch(value) for name, value in x.items() if value is not None}
        _check_batch(self, x)
        self._ensure_built(x)
        inputs.check_values({k: x.get(k) for k in ("support_x", "support_y", "support_weight")}, self._label_limit())
        learner = self._learner(False, steps)
        variables = [tf.convert_to_tensor(v) for v in self.trainable_variables]
        state = [tf.convert_to_tensor(v) for v in learner.model.non_trainable]
        support = [tf.nest.map_structure(lambda t: t[0], x.get(k)) if k in x else None for k in export.SUPPORT]
        ((params, state),) = Task(learner, support, (None, None, None), state).iterates(variables, stop_gradients=True)
        return export.specialise(self.model, params, state)

    def _to_batch(self, value):
        def convert(leaf):
            tensor = tf.convert_to_tensor(leaf)
            return (tf.cast(tensor, self.compute_dtype) if tensor.dtype.is_floating else tensor)[tf.newaxis]

        return tf.nest.map_structure(convert, value)

    def export(self, filepath):
        """Writes a SavedModel that adapts and predicts by itself; `keras_maml` is not needed to serve it.

        Signatures, for one task a request, stateless, with any number of supports and queries:

        - `serving_default(support_x, support_y, query_x) -> predictions`
        - `adapt(support_x, support_y) -> adapted weights and state`, named by variable path with `_` for `/`
        - `predict(query_x, <outputs of adapt>) -> predictions`

        Args:
            filepath: the folder to write.

        Raises:
            ValueError: if shapes are not known yet: call the model on an episode first.
        """
        export.save(self, filepath)

    # ------------------------------------------------------------------------------------------------- meta-learning

    def meta_gradients(self, x, y, sample_weight=None, variables=None):
        """The outer gradient of a batch of episodes, for training loops of your own.

        Dropout masks advance with every call.

        Args:
            x: the dict of the class docstring.
            y: `(T, Q, ...)`.
            sample_weight: `(T, Q)` or `None`.
            variables: values to take in place of those of `trainable_variables`, or `None`.

        Returns:
            `(loss, predictions, gradients)`: the mean of the tasks' losses, `(T, Q, ...)`, and a list aligned with
            `trainable_variables`, the mean over the tasks.
        """
        stacked, means = self._learn(x, y, sample_weight, variables)
        self.outer_step.assign_add(1)
        return tf.reduce_mean(stacked["loss"]), stacked["predictions"], means["gradients"]

    def _learn(self, x, y, sample_weight=None, variables=None):
        _check_batch(self, x, y, sample_weight)
        self._ensure_built(x)
        written = self._written_state()
        positions = [i for i, v in enumerate(self.model.non_trainable_variables) if any(v is w for w in written)]

        def one_task(task, variables):
            result = self.meta_gradient(task, variables)
            pairs = list(zip(self.trainable_variables, result.gradients, strict=True))
            missing = [v.path for v, g in pairs if g is None]
            if missing:
                raise ValueError(
                    f"These weights get no meta-gradient from `{type(self.meta_gradient).__name__}`: {missing}. The loss "
                    "does not depend on them. Freeze their layers (`trainable = False`) before making the MetaModel, or "
                    "use them in the model."
                )
            stacked = {"predictions": result.predictions, "loss": result.loss, **self._before_task(task, variables)}
            return stacked, {"gradients": list(result.gradients), "state": [result.state[i] for i in positions]}

        averaged = {"gradients": self.trainable_variables, "state": written}
        return self._run(one_task, x, y, sample_weight, variables, averaged, training=True)

    def _before_task(self, task, variables):
        if not self.log_before:
            return {}
        ((params, state),) = task.iterates(variables, at=(0,), stop_gradients=True, stream=2)
        loss, predictions, _ = task.loss(params, state, on="query")
        return {"predictions_before": predictions, "loss_before": loss}

    def _written_state(self):
        """Non-trainable weights that learning changes: floats, but for moments that no call reads."""
        unread = set()
        for layer in flatten_layers(self.model):
            if isinstance(layer, keras.layers.BatchNormalization) and (
                not layer.trainable or statistics_of(layer) != "moving"
            ):
                unread |= {id(v) for v in layer.non_trainable_variables}
        return [
            v for v in self.model.non_trainable_variables
            if id(v) not in unread and keras.backend.is_float_dtype(v.dtype)
        ]

    def train_step(self, data):
        """One outer update."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        stacked, means = self._learn(x, y, sample_weight)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        # The optimizer sums over replicas, and divides by the scale that it gives to losses.
        scale = self.optimizer.scale_loss(tf.ones([])) / replicas
        gradients = [g * tf.cast(scale, g.dtype) for g in means["gradients"]]
        self.optimizer.apply(gradients, self.trainable_variables)
        _write_mean(self._written_state(), means["state"])
        self.outer_step.assign_add(1)
        return self._report(y, sample_weight, stacked)

    def test_step(self, data):
        """Adapts to the supports and judges on the queries."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        _check_batch(self, x, y, sample_weight)
        self._ensure_built(x)

        def one_task(task, variables):
            ((params, state),) = task.iterates(variables, stop_gradients=True)
            loss, predictions, _ = task.loss(params, state, on="query")
            return {"predictions": predictions, "loss": loss, **self._before_task(task, variables)}, ()

        return self._report(y, sample_weight, self._run(one_task, x, y, sample_weight)[0])

    # ------------------------------------------------------------------------------------------------ the Keras shell

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`. The loss must have a reduction: a task's loss is one number.

        `jit_compile="auto"` stays off for models with max-pooling, whose second derivatives XLA rounds to bfloat16.
        """
        bound = inspect.signature(super().compile).bind(*args, **kwargs)
        arguments = bound.arguments
        task_loss = TaskLoss(arguments.get("loss"), arguments.get("loss_weights"))
        rough = task_mapping.rough_under_xla(self.model)
        if rough and arguments.get("jit_compile", "auto") == "auto":
            arguments["jit_compile"] = False
        elif rough and arguments["jit_compile"] and isinstance(self.meta_gradient, Unrolled):
            warnings.warn(
                f"XLA rounds the second derivatives of layer '{rough[0]}' to bfloat16: meta-gradients are off by about "
                "1 %. Use `jit_compile=False`, strided convolutions or average pooling.",
                stacklevel=2,
            )
        super().compile(*bound.args, **bound.kwargs)
        self._task_loss = task_loss
        if self._before is not None:
            self._before.compile(arguments.get("metrics"), arguments.get("weighted_metrics"))

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`, on a dataset of episodes. After `BackupAndRestore`, goes on with the episode it was at."""
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
        resume_episodes(self, arguments)
        return super().fit(*bound.args, **bound.kwargs)

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
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def _check_data(self, arguments, name, steps_name):
        data = arguments.get(name)
        if isinstance(data, tf.data.Dataset):
            if data.cardinality() == tf.data.INFINITE_CARDINALITY and arguments.get(steps_name) is None:
                raise ValueError(
                    f"The dataset given as `{name}` never ends. Pass `{steps_name}=`, or make it with `batches=`."
                )
        batch = inputs.first_batch(data)
        if batch is None and name == "validation_data":
            batch = data
        elif batch is None and isinstance(data, dict):
            batch = (data, arguments.get("y"), arguments.get("sample_weight"))
        if not isinstance(batch, (tuple, list, dict)):
            return
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if not isinstance(x, dict) or not all(hasattr(t, "shape") for t in tf.nest.flatten(x)):
            return
        _check_batch(self, x, y, sample_weight)
        inputs.check_values({**x, "y": y, "sample_weight": sample_weight}, self._label_limit())

    def _label_limit(self):
        loss = self._inner_task_loss or self._task_loss
        return loss and loss.label_limit(getattr(self.model, "output_shape", None) if self.model.built else None)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean over the tasks of their losses on given predictions, `(T, Q, ...)`; no regularisation losses."""
        merged = [None if part is None else tf.nest.map_structure(_merge, part) for part in (y, y_pred, sample_weight)]
        return self._task_loss(*merged)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates metrics with all queries of all tasks, `(T, Q, ...)` each, but for those of weight 0."""
        super().compute_metrics(x, *_examples(y, y_pred, sample_weight))
        return self.get_metrics_result()

    def _report(self, y, sample_weight, stacked):
        if self._before is not None:
            before = stacked["predictions_before"]
            self._before.update(stacked["loss_before"], *_examples(y, before, sample_weight))
        next(m for m in self.metrics if m.name == "loss").update_state(stacked["loss"])
        return self.compute_metrics(None, y, stacked["predictions"], sample_weight)

    def get_metrics_result(self):
        result = super().get_metrics_result()
        return result if self._before is None else {**result, **self._before.result()}

    def reset_metrics(self):
        super().reset_metrics()
        if self._before is not None:
            self._before.reset()

    def get_config(self):
        mapping = self.task_mapping
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "algorithm": keras.saving.serialize_keras_object(self.algorithm),
            "task_mapping": mapping if isinstance(mapping, str) else keras.saving.serialize_keras_object(mapping),
            "inner_loss": keras.saving.serialize_keras_object(self.inner_loss),
            "log_before": self.log_before,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        with keras.saving.custom_object_scope(custom_objects or {}):
            return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})


_task_mapping = task_mapping.get


def _copy(part):
    """A part of an algorithm with weights of its own."""
    return type(part).from_config(part.get_config())


class _Untracked:
    """Holds layers that a Keras model should not take for its own."""

    def __init__(self, value):
        self.value = value


def _check_batch(meta_model, x, y=None, sample_weight=None):
    inputs.check_shapes(x, y, sample_weight, meta_model.model)


def _merge(tensor):
    """`(T, Q, ...)` to `(T * Q, ...)`, with its Keras mask."""
    tail = [d if d is not None else tf.shape(tensor)[i + 2] for i, d in enumerate(tensor.shape[2:])]
    merged = tf.reshape(tensor, [-1, *tail])
    mask = keras_mask(tensor)
    if mask is not None:
        merged._keras_mask = _merge(mask)
    return merged


def _examples(y, predictions, sample_weight):
    """Task and query axes merged, rows of weight 0 left out: unweighted metrics would count them."""
    y, predictions = (tf.nest.map_structure(_merge, part) for part in (y, predictions))
    if sample_weight is None:
        return y, predictions, None
    weight = _merge(sample_weight)

    def keep(tensor):
        kept = tf.boolean_mask(tensor, weight > 0)
        mask = keras_mask(tensor)
        if mask is not None:
            kept._keras_mask = tf.boolean_mask(mask, weight > 0)
        return kept

    return *(tf.nest.map_structure(keep, part) for part in (y, predictions)), tf.boolean_mask(weight, weight > 0)


def _write_mean(variables, values):
    """Assigns to variables the mean of the replicas' values."""
    if not variables:
        return
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return

    def update(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            mean = strategy.extended.reduce_to(tf.distribute.ReduceOp.MEAN, value, variable.value)
            strategy.extended.update(variable.value, lambda v, new: v.assign(new), args=(mean,))

    context.merge_call(update, args=(values,))
