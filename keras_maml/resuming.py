"""`fit` goes on where a killed run stopped."""

import keras
import tensorflow as tf


class _SkipSeen(keras.callbacks.Callback):
    """Sets how many batches the dataset skips to what `BackupAndRestore`, which ran before, has restored."""

    def __init__(self, skip, began, length):
        super().__init__()
        self._skip, self._began, self._length = skip, began, length

    def on_train_begin(self, logs=None):
        seen = int(self.model.outer_step.numpy()) - self._began
        self._skip.assign(seen if self._length is None else seen % self._length)

    def on_epoch_end(self, epoch, logs=None):
        if self._length is None:
            self._skip.assign(0)  # if the dataset has an end after all, it begins at its beginning


def resume_episodes(meta_model, arguments, beginnings):
    """Makes `fit` go on with the batch that an interrupted run would have seen next.

    `BackupAndRestore` brings back weights and the epoch, and Keras then begins the dataset anew. Here the batches that
    were learned from are skipped, when the first iterator is made: after the weights are restored. A finite dataset
    goes round: those that were skipped come at its end. An epoch that was interrupted is run in full, as Keras does.

    Args:
        meta_model: the `MetaModel`.
        arguments: dict of the arguments of `fit`; its `x` and `callbacks` are replaced where a backup is used.
        beginnings: dict that this function keeps from call to call: the outer step at which the run that a backup
            belongs to began, by folder. It knows nothing of runs of other processes, which began where this one did.
    """
    callbacks, data = arguments.get("callbacks"), arguments.get("x")
    listed = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    backup = next((c for c in listed if isinstance(c, keras.callbacks.BackupAndRestore)), None)
    if backup is None or not isinstance(data, tf.data.Dataset):
        return
    cardinality = data.cardinality()
    if cardinality == tf.data.UNKNOWN_CARDINALITY and arguments.get("steps_per_epoch") is None:
        return  # an epoch is a pass, and of how many batches nobody knows
    folder = str(backup.backup_dir)
    if not (tf.io.gfile.exists(folder) and tf.io.gfile.listdir(folder)):
        beginnings.pop(folder, None)  # a new run
    began = beginnings.setdefault(folder, int(meta_model.outer_step.numpy()))
    with tf.device("CPU:0"):  # where datasets run
        skip = tf.Variable(0, dtype=tf.int64, trainable=False)
    # `range(1).flat_map` reads the variable when an iterator is made, not when the dataset is.
    length = int(cardinality) if cardinality >= 0 else None
    resumed = tf.data.Dataset.range(1).flat_map(
        lambda _: data.skip(skip) if length is None else data.skip(skip).concatenate(data.take(skip))
    )
    if cardinality != tf.data.UNKNOWN_CARDINALITY:
        resumed = resumed.apply(tf.data.experimental.assert_cardinality(cardinality))
    arguments["x"] = resumed.with_options(data.options())  # those of a dataset within `flat_map` are of no account
    arguments["callbacks"] = [*listed, _SkipSeen(skip, began, length)]
