"""What happens around the steps of `fit`: metrics before adaptation, and going on where a killed run stopped."""

import keras
import tensorflow as tf


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

    def update(self, losses, y, predictions, sample_weight=None):
        """Adds a batch: losses `(T,)`, the others `(examples, ...)`."""
        self._loss.update_state(losses)
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


def _copy(metrics):
    if isinstance(metrics, dict):
        return {key: _copy(value) for key, value in metrics.items()}
    if isinstance(metrics, (list, tuple)):
        return [_copy(value) for value in metrics]
    if isinstance(metrics, keras.metrics.Metric):
        return type(metrics).from_config(metrics.get_config())
    return metrics


class _SkipSeen(keras.callbacks.Callback):
    """Sets how many batches the dataset skips to what `BackupAndRestore`, which ran before, has restored."""

    def __init__(self, skip, started_at, length):
        super().__init__()
        self._skip, self._started_at, self._length = skip, started_at, length

    def on_train_begin(self, logs=None):
        seen = int(self.model.outer_step.numpy()) - self._started_at
        self._skip.assign(seen if self._length is None else seen % self._length)

    def on_epoch_end(self, epoch, logs=None):
        self._skip.assign(0)  # iterators of later epochs begin at the beginning


def resume_episodes(meta_model, arguments):
    """Makes `fit` go on with the batch that an interrupted run would have seen next.

    `BackupAndRestore` brings back weights and the epoch, and Keras then begins the dataset anew. Here the batches that
    were learned from are skipped, when the first iterator is made: after the weights are restored.

    Args:
        meta_model: the `MetaModel`.
        arguments: dict of the arguments of `fit`; its `x` and `callbacks` are replaced where a backup is used.
    """
    callbacks, data = arguments.get("callbacks"), arguments.get("x")
    listed = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    if not any(isinstance(c, keras.callbacks.BackupAndRestore) for c in listed):
        return
    if not isinstance(data, tf.data.Dataset):
        return
    cardinality = data.cardinality()
    length = int(cardinality) if cardinality > 0 else None
    skip = tf.Variable(0, dtype=tf.int64, trainable=False)
    # `range(1).flat_map` reads the variable when an iterator is made, not when the dataset is.
    resumed = tf.data.Dataset.range(1).flat_map(lambda _: data.skip(skip))
    if cardinality != tf.data.UNKNOWN_CARDINALITY:
        resumed = resumed.apply(tf.data.experimental.assert_cardinality(cardinality))
    arguments["x"] = resumed
    arguments["callbacks"] = [*listed, _SkipSeen(skip, int(meta_model.outer_step.numpy()), length)]
