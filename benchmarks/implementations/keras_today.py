"""What a Keras user writes today: stock layers, `stateless_call`, nested tapes, a loop over tasks."""

import keras
import tensorflow as tf

from benchmarks.implementations import Implementation, keras_models
from benchmarks.rows import OUTER_LEARNING_RATE


class KerasEager(Implementation):
    def __init__(self, row, weights, episodes):
        self.row = row
        self.shapes = {name: value.shape for name, value in weights.items()}
        self.model = keras_models.build(row.net, weights)
        self.loss = keras_models.loss(row)
        self.optimizer = keras.optimizers.Adam(OUTER_LEARNING_RATE)
        self.optimizer.build(self.model.trainable_variables)
        self.episodes = [tf.constant(value) for value in episodes.values()]

    def _loss(self, values, x, y):
        predictions, _ = self.model.stateless_call(values, self.model.non_trainable_variables, x, training=True)
        return self.loss(y, predictions)

    def _gradients(self, *episodes):
        theta = self.model.trainable_variables
        with tf.GradientTape() as outer:
            losses = []
            for task in range(episodes[0].shape[0]):
                support_x, support_y, query_x, query_y = (values[task] for values in episodes)
                values = [tf.convert_to_tensor(v) for v in theta]
                for _ in range(self.row.steps):
                    with tf.GradientTape() as inner:
                        inner.watch(values)
                        loss = self._loss(values, support_x, support_y)
                    gradients = inner.gradient(loss, values)
                    # An embedding's gradient is sparse: `IndexedSlices`.
                    gradients = [tf.convert_to_tensor(g) for g in gradients]
                    values = [v - self.row.learning_rate * g for v, g in zip(values, gradients, strict=True)]
                losses.append(self._loss(values, query_x, query_y))
            loss = tf.reduce_mean(losses)
        return outer.gradient(loss, [v.value for v in theta])

    def _step(self, *episodes):
        self.optimizer.apply_gradients(zip(self._gradients(*episodes), self.model.trainable_variables, strict=True))

    def meta_gradient(self, episodes):
        episodes = [tf.constant(value) for value in episodes.values()]
        gradients = zip(self.shapes.items(), self._gradients(*episodes), strict=True)
        return {name: tf.convert_to_tensor(g).numpy().reshape(shape) for (name, shape), g in gradients}

    def run(self, steps):
        for _ in range(steps):
            self._step(*self.episodes)


class KerasFunction(KerasEager):
    def __init__(self, row, weights, episodes):
        super().__init__(row, weights, episodes)
        self._step = tf.function(super()._step)
        self._gradients = tf.function(super()._gradients)
