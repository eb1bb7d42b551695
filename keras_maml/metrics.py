"""Metrics over the queries of all tasks, after adaptation and before."""

import keras
import tensorflow as tf

from keras_maml.losses import append_axes, keras_mask
from keras_maml.task_mapping import Parallel
from keras_maml.tracing import made_at_once


def merge(tensor):
    """`(T, Q, ...)` to `(T * Q, ...)`, with its Keras mask."""
    tail = [d if d is not None else tf.shape(tensor)[i + 2] for i, d in enumerate(tensor.shape[2:])]
    merged = tf.reshape(tensor, [-1, *tail])
    mask = keras_mask(tensor)
    if mask is not None:
        merged._keras_mask = merge(mask)
    return merged


def merged_examples(y, predictions, sample_weight):
    """Task and query axes merged, rows of weight 0 left out: unweighted metrics would count them."""
    y, predictions = (tf.nest.map_structure(merge, part) for part in (y, predictions))
    if sample_weight is None:
        return y, predictions, None
    weight = merge(sample_weight)

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


def weights_of_finite(finite, y, sample_weight):
    """The weights `(T, Q)` of queries, 0 for those of tasks that are not finite."""
    if sample_weight is None:
        sample_weight = tf.ones(tf.shape(tf.nest.flatten(y)[0])[:2])
    return tf.where(finite[:, tf.newaxis], sample_weight, tf.zeros([], sample_weight.dtype))


class NonFiniteTasksMetric(keras.metrics.Metric):
    """How many tasks had a loss or gradient that is NaN or infinite; `tasks` is the number of all."""

    def __init__(self):
        super().__init__(name="non_finite_tasks")
        self.count = self.add_variable((), initializer="zeros", name="count")
        self.tasks = self.add_variable((), initializer="zeros", name="tasks")

    def update_state(self, finite, sample_weight=None):
        """Adds a batch: `(T,)` booleans."""
        self.count.assign_add(tf.cast(tf.math.count_nonzero(~finite), self.dtype))
        self.tasks.assign_add(tf.cast(tf.size(finite), self.dtype))

    def result(self):
        """The number since the beginning of the epoch."""
        return keras.ops.add(self.count, 0)  # a copy: validation begins anew before Keras reads the logs of training


def build_metrics(model, y, predictions):
    """Makes the compiled metrics of a Keras model, from tensors that may be in a graph, outside of that graph.

    Some, such as `F1Score`, make variables when they are first updated: with these, all is traced twice. Under a
    strategy nothing is done: `fit` and `evaluate` make metrics before a step.
    """
    metrics = getattr(model, "_compile_metrics", None)  # Keras's own (3.15), which looks at shapes alone
    if metrics is not None and not metrics.built and not tf.distribute.has_strategy():
        with made_at_once():
            metrics.build(y, predictions)


class BeforeAdaptation:
    """Metrics of the predictions before adaptation, named `<metric>_before`.

    A Keras model that never predicts resolves and holds them, as `compile` does for those after adaptation.
    """

    def __init__(self):
        self._loss = keras.metrics.Mean(name="loss")
        self._metrics = None

    def compile(self, metrics=None, weighted_metrics=None):
        """Takes copies of what `compile` takes: a metric object holds the state of one of the two."""
        self._metrics = keras.Sequential(name="before_adaptation")
        self._metrics.compile(metrics=_copy(metrics), weighted_metrics=_copy(weighted_metrics))
        self._built = False

    def build(self, y, predictions, sample_weight=None):
        """Makes the state of the metrics where Keras does: under `tf.distribute` before a step, which must not."""
        if not self._built:
            self._metrics.compute_metrics(None, y, predictions, sample_weight)
            self.reset()
        self._built = True

    def update(self, losses, y, predictions, sample_weight=None, weight=None):
        """Adds a batch: losses `(T,)`, weight of tasks `(T,)` or `None`, the others `(examples, ...)`."""
        build_metrics(self._metrics, y, predictions)
        self._built = True
        self._loss.update_state(losses, sample_weight=weight)
        self._metrics.compute_metrics(None, y, predictions, sample_weight)

    def result(self):
        """Values by name."""
        if self._metrics is None:
            return {}
        results = {**self._metrics.get_metrics_result(), "loss": self._loss.result()}
        return {f"{name}_before": value for name, value in results.items()}

    def reset(self):
        """Starts anew, as at each epoch."""
        self._loss.reset_state()
        if self._metrics is not None:
            self._metrics.reset_metrics()


class MetricsOfTasks:
    """Compiled metrics of every task by itself.

    Args:
        metrics, weighted_metrics: as for `compile`; copies are taken.
    """

    def __init__(self, metrics=None, weighted_metrics=None):
        for metric in keras.tree.flatten([metrics or [], weighted_metrics or []]):
            if getattr(metric, "name", None) == "loss":
                raise ValueError(
                    "A metric has the name 'loss', under which a report has the loss of each task. Give the metric "
                    "another `name`."
                )
        self._holder = keras.Sequential(name="metrics_of_tasks")  # never predicts, resolves and holds the metrics
        self._holder.compile(metrics=_copy(metrics), weighted_metrics=_copy(weighted_metrics))

    def build(self, y, predictions, sample_weight=None):
        """Makes the state of the metrics from an example `(1, Q, ...)` of each, outside of any graph."""
        self._holder.compute_metrics(None, *merged_examples(y, predictions, sample_weight))
        self._holder.reset_metrics()

    def names(self):
        """Names of the metrics, as in the logs of `fit`."""
        return [name for name in self._holder.get_metrics_result() if name != "loss"]  # Keras's tracker of a loss

    def directions(self):
        """`{name: "up" | "down" | None}`, where better is, as far as Keras knows."""
        # Keras's own `ModelCheckpoint(mode="auto")` reads this attribute (Keras 3.15).
        known = {metric.name: getattr(metric, "_direction", None) for metric in self._flat()}

        def of(name):  # with several outputs it is `<output>_<metric>`
            endings = [k for k in known if name.endswith(f"_{k}")]
            return known.get(name if name in known else max(endings, key=len, default=None))

        return {name: of(name) for name in self.names()}

    def _flat(self):
        return [inner for metric in self._holder.metrics for inner in getattr(metric, "metrics", [metric])]

    def __call__(self, y, predictions, sample_weight=None):
        """Values of each task by name, `(T,)` float32 each; arguments `(T, Q, ...)`.

        Raises:
            ValueError: if a metric is not one number.
        """
        masks = tf.nest.map_structure(keras_mask, predictions)
        flat_masks = [mask for mask in tf.nest.flatten(masks) if mask is not None]
        names = self.names()

        def of_task(task):
            y, predictions, weight, present = tf.nest.map_structure(lambda t: t[tf.newaxis], task)
            present = iter(present)
            for tensor, mask in zip(tf.nest.flatten(predictions), tf.nest.flatten(masks), strict=True):
                if mask is not None:
                    tensor._keras_mask = next(present)
            with keras.StatelessScope():
                self._holder.reset_metrics()
                self._holder.compute_metrics(None, *merged_examples(y, predictions, weight[0] if weight else None))
                values = self._holder.get_metrics_result()
            for name, value in ((name, values[name]) for name in names):
                if tf.convert_to_tensor(value).shape.rank != 0:
                    raise ValueError(
                        f"Metric '{name}' has a value of shape {tuple(value.shape)} for each task. A report needs one "
                        "number; give the metric an average, such as `average='macro'`."
                    )
            return [tf.cast(values[name], tf.float32) for name in names]

        weights = [] if sample_weight is None else [sample_weight]
        if not names:
            return {}
        specs = [tf.TensorSpec((), tf.float32)] * len(names)
        # Not `tf.map_fn`: where a metric raises in it, TensorFlow 2.21 leaves a caching device on the global variable
        # scope, and the next `tf.distribute` strategy of the process fails.
        episodes = y, predictions, weights, flat_masks
        values, _ = Parallel()(lambda task, index: (of_task(task), ()), episodes, (specs, ()))
        return dict(zip(names, values, strict=True))


def _copy(metrics):
    if isinstance(metrics, dict):
        return {key: _copy(value) for key, value in metrics.items()}
    if isinstance(metrics, (list, tuple)):
        return [_copy(value) for value in metrics]
    return _copy_of(metrics) if isinstance(metrics, keras.metrics.Metric) else metrics


def _copy_of(metric):
    if type(metric) is keras.metrics.MeanMetricWrapper:  # of a function that may not be serialisable (Keras 3.15)
        return type(metric)(metric._fn, name=metric.name, dtype=metric.dtype, **metric._fn_kwargs)
    try:
        return type(metric).from_config(metric.get_config())
    except Exception as error:
        raise ValueError(
            f"Metric '{metric.name}' ({type(metric).__name__}) cannot be copied, and every task, or the time before "
            f"adaptation, needs a copy: {error}. Give its class a `get_config` with all arguments of its constructor, "
            "and its constructor `**kwargs` for `name` and `dtype`; or pass a function in its place."
        ) from error
