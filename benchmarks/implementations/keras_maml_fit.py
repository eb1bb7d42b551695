"""keras_maml, as its users run it: `MetaModel.fit`."""

import keras
import tensorflow as tf

import keras_maml
from benchmarks.implementations import Implementation, keras_models
from benchmarks.rows import OUTER_LEARNING_RATE


def as_batch(episodes):
    x = {name: tf.constant(value) for name, value in episodes.items()}
    y = x.pop("query_y")
    return x, y


class KerasMaml(Implementation):
    @classmethod
    def prepare(cls, row):
        if row.net.kind != "mlp":  # tasks run side by side, not vectorised
            keras_maml.set_threads(tasks=row.tasks)

    def __init__(self, row, weights, episodes):
        self.steps_at_once = row.steps_per_execution
        self.shapes = {name: value.shape for name, value in weights.items()}
        self.dataset = tf.data.Dataset.from_tensors(as_batch(episodes)).repeat()
        algorithm = keras_maml.MAML(learning_rate=row.learning_rate, steps=row.steps)
        self.meta_model = keras_maml.MetaModel(keras_models.build(row.net, weights), algorithm)
        self.meta_model.compile(
            optimizer=keras.optimizers.Adam(OUTER_LEARNING_RATE),
            loss=keras_models.loss(row),
            steps_per_execution=row.steps_per_execution,
        )
        self.gradients = tf.function(self.meta_model.meta_gradients)

    def meta_gradient(self, episodes):
        _, _, gradients = self.gradients(*as_batch(episodes))
        shapes = self.shapes.items()
        return {name: g.numpy().reshape(shape) for (name, shape), g in zip(shapes, gradients, strict=True)}

    def run(self, steps):
        self.meta_model.fit(self.dataset, steps_per_epoch=steps, epochs=1, verbose=0)
