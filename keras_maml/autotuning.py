"""Datasets whose iterators are let go at once."""

import tensorflow as tf


def without_autotuning(dataset):
    """The dataset with as many calls at once as there are cores wherever it says `tf.data.AUTOTUNE`.

    What tunes a pipeline is a thread that wakes ever more rarely, and an iterator that is let go waits for it to end.
    It is woken for that, but sometimes, likely where it looks for the mark to end before that is set, it sleeps again:
    of iterators that lived two seconds or less, 1 in 12 to 1 in 2 in different runs took up to as long again, and it
    may be a minute. That is at the end of `fit`, after an epoch, after validation. Without tuning episodes come as
    fast (`benchmarks/README.md`, Episodes). Who wants it nevertheless sets `autotune.enabled` by `with_options`.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
