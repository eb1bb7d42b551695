"""`MetaModel`: a Keras model whose call is a few-shot learner and whose `fit` is meta-learning."""

import inspect
import warnings

import keras
import tensorflow as tf

from keras_maml import algorithms, export, inputs, task_mapping
from keras_maml.adaptation import Learner, PureModel, Task
from keras_maml.callbacks import BeforeAdaptation, resume_episodes
from keras_maml.losses import TaskLoss, append_axes, keras_mask
from keras_maml.meta_gradients import Unrolled
from keras_maml.selection import adapting_mask, seed_variables, split


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
        if not isinstance(model, keras.Model) or isinstance(model, MetaModel):
            raise ValueError(f"`model` must be a `keras.Model` that is not a MetaModel itself. Received: {model!r}.")
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
        self._specs = _Untracked({})
        self._beginnings = _Untracked({})
        if model.built:
            self._build_parts()

    # ----------------------------------------------------------------------------------------------------- building

    def build(self, input_shape=None):
        """Does nothing: the base model is built from the first episode, dtypes included."""

    def _build_parts(self):
        self.mask = adapting_mask(self.model, self.algorithm.layers)
        self._trainable_ids = [id(v) for v in self.model.trainable_variables]
        adapting = [v for v, adapts in zip(self.model.trainable_variables, self.mask, strict=True) if adapts]
        if not self.rule.built:
            self.rule.build(adapting, self.algorithm.steps)
        halves, self._no_split = (None, "everything adapts") if all(self.mask) else split(self.model, self.mask)
        self._halves = halves and _Untracked(halves)
        self.built = True

    def _prepare(self, x, y=None, sample_weight=None):
        """Checks a batch of episodes, concrete or being traced, and builds from it what is not built yet."""
        inputs.check_shapes(x, y, sample_weight, self.model)
        if not self.model.built:

            def symbolic(tensor):
                dtype = keras.backend.standardize_dtype(tensor.dtype)
                floating = keras.backend.is_float_dtype(dtype)
                return keras.KerasTensor((None, *tensor.shape[2:]), self.compute_dtype if floating else dtype)

            with tf.init_scope():
                self.model(tf.nest.map_structure(symbolic, x["support_x"]))
        if not self.built or not hasattr(self, "mask"):
            with tf.init_scope():
                self._build_parts()
        if [id(v) for v in self.model.trainable_variables] != self._trainable_ids:
            raise ValueError(
                f"Model '{self.model.name}' has {len(self.model.trainable_variables)} trainable weights, and they are "
                f"not the {len(self.mask)} that it had when the MetaModel was made. Freeze layers first, then make the "
                "MetaModel."
            )
        limits = {"support_y": self._label_limit(), "y": self._label_limit(self._task_loss)}
        inputs.check_values({**x, "y": y, "sample_weight": sample_weight}, limits)
        if all(map(tf.is_tensor, tf.nest.flatten(x))):  # arrays are cast before a step sees them
            self._specs.value = export.widen(self._specs.value, x)

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

    def _run(self, one_task, x, y=None, sample_weight=None, variables=None, training=False, learns=False):
        """Maps `one_task(task, variables) -> (stacked, gradients, state)` over the tasks of a batch.

        `stacked` is a dict with `"predictions"`, and otherwise scalars. Where it `learns`, gradients are averaged, and
        so is what tasks changed of the model's state, which becomes pairs `(variable, mean)`.
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
            stacked, gradients, after = one_task(Task(learner, support, query, state, seed, positions), variables)
            for name in [name for name in stacked if name.startswith("predictions")]:
                masks = tf.nest.map_structure(keras_mask, stacked[name])
                if any(mask is not None for mask in tf.nest.flatten(masks)):
                    stacked[f"mask_of_{name}"] = masks
            return stacked, (gradients, [after[i] for i in changed]) if learns else ()

        specs, changed = self._output_specs(learner, x["query_x"], state, training, y is not None)
        changing = [learner.model.non_trainable[i] for i in changed]
        averaged = (self.trainable_variables, changing) if learns else ()
        averaged = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape, v.dtype), averaged)
        stacked, means = self._mapping_for(variables)(function, episodes, (specs, averaged))
        for name in [name for name in stacked if name.startswith("mask_of_")]:
            for tensor, mask in zip(
                tf.nest.flatten(stacked[name.removeprefix("mask_of_")]), tf.nest.flatten(stacked[name]), strict=True
            ):
                tensor._keras_mask = mask
        if not learns:
            return stacked, [], []
        gradients, values = means
        return stacked, gradients, list(zip(changing, values, strict=True))

    def _output_specs(self, learner, query_x, state, training, with_loss):
        """Specs of what tasks stack, and the positions of the floating point state that a call on queries changes."""
        changed = []

        def forward(params, state, query_x):
            predictions, _, after = learner.model(params, state, query_x, training, "query")
            # Frozen weights and constants stay the very same tensor. To write back their mean over the tasks would
            # round them, and a vectorised mapping cannot return what comes from outside it.
            same = [a is b for a, b in zip(state, after, strict=True)]
            changed.extend(i for i, v in enumerate(after) if v.dtype.is_floating and not same[i])
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
        return stacked, changed

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
        self._prepare(inputs)

        def one_task(task, variables):
            ((params, state),) = task.iterates(variables, stop_gradients=not training)
            return {"predictions": task.predict(params, state)}, (), ()

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
        self._prepare(x)
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

        if not any(hasattr(leaf, "shape") for leaf in tf.nest.flatten(value)):
            value = tf.convert_to_tensor(value)  # a list of numbers is an array, not a structure
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
        self._assert_compile_called("meta_gradients")
        stacked, gradients, _ = self._learn(x, y, sample_weight, variables)
        self.outer_step.assign_add(1)
        return tf.reduce_mean(stacked["loss"]), stacked["predictions"], gradients

    def _learn(self, x, y, sample_weight=None, variables=None):
        self._prepare(x, y, sample_weight)

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
            return stacked, list(result.gradients), result.state

        return self._run(one_task, x, y, sample_weight, variables, training=True, learns=True)

    def _before_task(self, task, variables):
        if not self.log_before:
            return {}
        ((params, state),) = task.iterates(variables, at=(0,), stop_gradients=True, stream=2)
        loss, predictions, _ = task.loss(params, state, on="query")
        return {"predictions_before": predictions, "loss_before": loss}

    def train_step(self, data):
        """One outer update."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        stacked, gradients, updates = self._learn(x, y, sample_weight)
        share = _share_of_tasks(tf.shape(stacked["loss"])[0])
        # The optimizer sums over replicas, and divides by the scale that it gives to losses.
        gradients = _scaled(gradients, self.optimizer.scale_loss(tf.ones([])) * share)
        self.optimizer.apply(gradients, self.trainable_variables)
        _write_mean(updates, share)
        self.outer_step.assign_add(1)
        return self._report(y, sample_weight, stacked)

    def test_step(self, data):
        """Adapts to the supports and judges on the queries."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._prepare(x, y, sample_weight)

        def one_task(task, variables):
            ((params, state),) = task.iterates(variables, stop_gradients=True)
            loss, predictions, _ = task.loss(params, state, on="query")
            return {"predictions": predictions, "loss": loss, **self._before_task(task, variables)}, (), ()

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

    def compile_from_config(self, config):
        # Keras's own refuses a model whose `compile` is not Keras's.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

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
        data = arguments.get("x")
        if not isinstance(data, dict) and getattr(data, "num_batches", None) is None:
            arguments.setdefault("shuffle", False)  # Keras's default is for arrays and finite PyDatasets, else it warns
        resume_episodes(self, arguments, self._beginnings.value)
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
        self._assert_compile_called("train_on_batch")
        self._check_values(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """As `keras.Model.test_on_batch`."""
        self._assert_compile_called("test_on_batch")
        self._check_values(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, return_dict=return_dict)

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
        if sample_weight is not None and tf.nest.is_nested(y) and isinstance(data, (dict, tuple, list)):
            raise ValueError(
                "Keras takes no `sample_weight` (tasks, queries) with arrays for several outputs. Pass "
                "`tf.data.Dataset.from_tensor_slices((x, y, sample_weight)).batch(tasks)`."
            )
        self._check_values(x, y, sample_weight)

    def _check_values(self, x, y=None, sample_weight=None):
        if isinstance(x, dict) and all(hasattr(t, "shape") for t in tf.nest.flatten(x)):
            with self.distribute_strategy.scope():  # of which the weights of an unbuilt model are
                self._prepare(x, y, sample_weight)

    def _label_limit(self, loss=None):
        loss = loss or self._inner_task_loss or self._task_loss
        return loss and loss.label_limit(getattr(self.model, "output_shape", None) if self.model.built else None)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of given predictions, `(T, Q, ...)`, all queries taken for one task; no regularisation losses."""
        merged = [None if part is None else tf.nest.map_structure(_merge, part) for part in (y, y_pred, sample_weight)]
        return self._task_loss(*merged)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates metrics with all queries of all tasks, `(T, Q, ...)` each, but for those of weight 0."""
        examples = _examples(y, y_pred, sample_weight)
        if self._before is not None:
            self._before.build(*examples)
        super().compute_metrics(x, *examples)
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
    """Holds what a Keras model should not take for its own, nor wrap: layers, dicts."""

    def __init__(self, value):
        self.value = value


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

    y, predictions = (tf.nest.map_structure(keep, part) for part in (y, predictions))
    kept = tf.boolean_mask(weight, weight > 0)

    def along_mask(tensor):
        # Keras multiplies the weights of examples by a mask (examples, steps), which does not broadcast.
        mask = keras_mask(tensor)
        return kept if mask is None else append_axes(kept, mask.shape.rank) * tf.ones_like(mask, kept.dtype)

    return y, predictions, tf.nest.map_structure(along_mask, predictions)


def _share_of_tasks(tasks):
    """Share of a batch's tasks that this replica has; of a last batch it may have fewer than others, or none."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.ones([])
    tasks = tf.cast(tasks, tf.float32)
    return tasks / context.all_reduce(tf.distribute.ReduceOp.SUM, tasks)


def _scaled(tensors, factor):
    # A replica without tasks may have NaN for the means of its tasks, and its factor is 0.
    return [tf.math.multiply_no_nan(tensor, tf.cast(factor, tensor.dtype)) for tensor in tensors]


def _write_mean(updates, share):
    """Assigns to variables the mean over all tasks: `updates` are pairs of a variable and this replica's mean."""
    if not updates:
        return
    variables, values = (list(part) for part in zip(*updates, strict=True))
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return

    def update(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            mean = strategy.extended.reduce_to(tf.distribute.ReduceOp.SUM, value, variable.value)
            strategy.extended.update(variable.value, lambda v, new: v.assign(new), args=(mean,))

    context.merge_call(update, args=(_scaled(values, share),))
