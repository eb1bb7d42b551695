"""The nets as Keras models of stock layers, for keras_maml and for Keras as it is without it."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from benchmarks import nets

layers = keras.layers


def build(net, weights):
    """A functional model with the given weights."""
    inputs = keras.Input(net.input_shape, dtype="int32" if net.vocabulary else None)
    model = keras.Model(inputs, layers.Dense(net.outputs)(BODIES[net.kind](net, inputs)))
    values = zip(model.trainable_variables, weights.values(), strict=True)
    for variable, value in values:
        variable.assign(value.reshape(variable.shape))  # Keras splits the heads of an attention
    return model


def loss(row):
    if row.regression:
        return keras.losses.MeanSquaredError()
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(net, x):
    for _ in range(2):
        x = layers.Dense(net.width, activation="relu")(x)
    return x


def convolutions(net, x):
    pooled = net.kind == "pooled"
    for _ in range(nets.CONVOLUTIONS):
        x = layers.Conv2D(net.width, 3, strides=1 if pooled else 2, padding="same")(x)
        x = layers.BatchNormalization(epsilon=nets.EPSILON)(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x) if pooled else x
    return layers.Flatten()(x) if pooled else layers.GlobalAveragePooling2D()(x)


def lstm(net, tokens):
    return layers.LSTM(net.width)(layers.Embedding(net.vocabulary, net.width)(tokens))


def transformer(net, tokens):
    length = net.input_shape[0]
    positions = keras.ops.zeros_like(tokens) + keras.ops.arange(length, dtype="int32")
    x = layers.Embedding(net.vocabulary, net.width)(tokens) + layers.Embedding(length, net.width)(positions)
    for _ in range(nets.BLOCKS):
        attended = layers.MultiHeadAttention(nets.HEADS, net.width // nets.HEADS)(x, x)
        x = layers.LayerNormalization(epsilon=nets.EPSILON)(x + attended)
        hidden = layers.Dense(2 * net.width, activation="relu")(x)
        x = layers.LayerNormalization(epsilon=nets.EPSILON)(x + layers.Dense(net.width)(hidden))
    return layers.GlobalAveragePooling1D()(x)


BODIES = {"mlp": mlp, "pooled": convolutions, "strided": convolutions, "lstm": lstm, "transformer": transformer}
