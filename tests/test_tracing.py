"""How often, and how, steps are traced: counted by a loss that notes each call."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.tracing import made_at_once

TASKS, FEATURES, WAYS = 4, 3, 3
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def episodes():
    generator = np.random.default_rng(0)
    support_x, query_x = generator.normal(size=(2, TASKS, 5, FEATURES)).astype("float32")
    support_y, query_y = generator.integers(0, WAYS, (2, TASKS, 5))
    return {"support_x": support_x, "support_y": support_y, "query_x": query_x}, query_y


def dense():
    return keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(WAYS)])


def compiled(model, loss=LOGITS, log_before=False, **kwargs):
    algorithm = keras_maml.MAML(0.1, 1)
    meta_model = keras_maml.MetaModel(
        model, algorithm, "parallel", inner_loss=LOGITS, log_before=log_before, skip_non_finite=True
    )
    meta_model.compile("adam", loss, metrics=["accuracy"], **kwargs)
    return meta_model


def traces(body):
    """How often a function is traced that has run twice, and is what `body` gives in its first trace."""
    count, kept = [], []

    @tf.function
    def function():
        count.append(1)
        if not kept:
            kept.append(body())
        return kept[0] + 1

    assert float(function()) == float(function()) == 3.0
    return len(count)


def test_variables_that_are_made_at_once_cost_no_second_trace():
    def at_once():
        with made_at_once():
            variable = tf.Variable(2.0)
            assert variable.numpy() == 2.0
        return variable

    def under_init_scope():
        with tf.init_scope():
            return tf.Variable(2.0)

    assert traces(at_once) == 1
    assert traces(under_init_scope) == 2  # were it once, `made_at_once` could go


@pytest.mark.parametrize("built", [True, False])
def test_every_function_is_traced_once(built):
    seen = []

    def loss(y, predictions):
        seen.append(tf.inside_function())
        return LOGITS(y, predictions)

    def counted(function, *args, **kwargs):
        seen.clear()
        function(*args, **kwargs)
        assert all(seen)
        return len(seen)

    def made(**kwargs):
        model = dense()
        if built:
            model.build((None, FEATURES))
        return compiled(model, loss, log_before=True, **kwargs)

    x, y = episodes()

    def forever():
        yield from itertools.repeat((x, y))

    # The loss of the queries, before adaptation and after.
    assert counted(made().train_on_batch, x, y) == 2
    assert counted(made().test_on_batch, x, y) == 2
    assert counted(made().fit, x, y, batch_size=TASKS, epochs=2, verbose=0) == 2
    assert counted(made().fit, forever(), steps_per_epoch=2, verbose=0, validation_data=(x, y)) == 4
    assert counted(made().evaluate, forever(), steps=2, verbose=0) == 2
    assert counted(tf.function(made().train_step), (x, y)) == 2
    assert counted(made(steps_per_execution=2).fit, forever(), steps_per_epoch=4, verbose=0) == 2


def test_a_layer_with_a_variable_of_tensorflow_is_built_by_the_first_batch():
    class Scaled(keras.layers.Layer):
        def build(self, shape):
            self.scale = tf.Variable(2.0, trainable=False)

        def call(self, inputs):
            return self.scale * inputs

    class Composite(keras.Model):
        def __init__(self):
            super().__init__()
            self.scaled, self.last = Scaled(), keras.layers.Dense(WAYS)

        def call(self, inputs):
            return self.last(self.scaled(inputs))

    x, y = episodes()
    for generator in (False, True):
        meta_model = compiled(Composite())
        if generator:
            meta_model.fit((pair for pair in [(x, y)]), steps_per_epoch=1, verbose=0)
        else:
            meta_model.train_on_batch(x, y)
        assert float(meta_model.model.scaled.scale) == 2.0


def test_neither_training_nor_meta_gradients_go_through_autograph():
    seen = set()

    def loss(y, predictions):
        seen.add(tf.__internal__.autograph.control_status_ctx().status.name)
        return LOGITS(y, predictions)

    x, y = episodes()
    for step in (lambda m: m.train_on_batch, lambda m: tf.function(m.meta_gradients)):
        meta_model = compiled(dense(), loss)
        seen.clear()
        step(meta_model)(x, y)
        assert seen == {"DISABLED"}
