"""Datasets whose iterators are let go at once."""

import tensorflow as tf


def without_autotuning(dataset):
    """The dataset with as many calls at once as there are cores, 16 at most, where it says `tf.data.AUTOTUNE`.

    What tunes a pipeline is a thread that wakes ever more rarely, and an iterator that is let go waits for it to end.
    It is woken for that, but sometimes, likely where it looks for the mark to end before that is set, it sleeps again,
    the longer the longer the iterator has lived (40 seconds were seen). That is at the end of `fit`, after an epoch,
    after validation. How often, and that episodes come as fast without: `benchmarks/README.md`, Episodes.

    It stays where a user has set `autotune.enabled`, by `with_options`. `flat_map` and `interleave` over a dataset lose
    its options. Under `tf.distribute` TensorFlow adds a pipeline for each device, which is tuned all the same.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
