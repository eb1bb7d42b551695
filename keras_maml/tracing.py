"""Variables that are made while a `tf.function` is traced."""

import contextlib

import tensorflow as tf


@contextlib.contextmanager
def made_at_once():
    """Leaves the graph that is being traced, if any, so that variables made within are made now.

    A `tf.function` whose first trace makes variables throws it away and traces all of it again, and `tf.init_scope`
    alone does not change that. Under a strategy this is `tf.init_scope`: making variables is the strategy's own.
    """

    def not_lifted(next_creator, **kwargs):
        if tf.executing_eagerly():  # not so in the graph by which Keras builds the layers of a model
            kwargs["experimental_enable_variable_lifting"] = False
        return next_creator(**kwargs)

    if tf.distribute.has_strategy():
        with tf.init_scope():
            yield
        return
    with tf.init_scope(), tf.variable_creator_scope(not_lifted):
        yield
