"""Padded episodes of varying ways and shots give what the same episodes without padding give one by one.

    meta_gradients(batch of padded episodes) = mean over tasks of meta_gradients(the task's examples alone)

in float64, where padding could only enter through a loss, a normalisation moment or the mean over the tasks.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import episodes

RANDOM = np.random.default_rng(0)
LABELS = np.arange(60) % 6
VECTORS = RANDOM.normal(size=(60, 5)) + 5.0
IMAGES = RANDOM.normal(size=(60, 6, 6, 2)) + 5.0  # a zero stands out from them


def dense(normalisation):
    layers = [keras.layers.Dense(7), *normalisation, keras.layers.Activation("tanh"), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input((5,)), *layers]), VECTORS


def convolutional(normalisation):
    layers = [keras.layers.Conv2D(3, 3), *normalisation, keras.layers.Activation("tanh"), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((6, 6, 2)), *layers, keras.layers.Dense(4)]), IMAGES


def unpadded(x, y, sample_weight, task):
    """One episode of a batch, without its padding."""
    support, query = (weight[task].numpy() > 0 for weight in (x["support_weight"], sample_weight))
    alone = {
        "support_x": x["support_x"][task][support][None],
        "support_y": x["support_y"][task][support][None],
        "query_x": x["query_x"][task][query][None],
    }
    return alone, y[task][query][None]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "make, normalisation, mapping",
    [
        (dense, [], "parallel"),
        (dense, [], "vectorized"),
        (dense, ["batch"], "parallel"),
        (dense, ["batch"], "vectorized"),
        (dense, ["support"], "parallel"),
        (dense, ["support"], "vectorized"),
        (convolutional, [], "parallel"),
        (convolutional, ["batch"], "vectorized"),
        (convolutional, ["stock"], "parallel"),
    ],
)
def test_meta_gradients_of_padded_episodes(make, normalisation, mapping):
    kinds = {"stock": keras.layers.BatchNormalization()}
    layers = [kinds.get(name) or keras_maml.layers.BatchNormalization(name) for name in normalisation]
    model, x = make(layers)
    dataset = episodes.from_arrays(
        x, LABELS, (2, 4), episodes.PerClass((1, 3)), (1, 2), tasks=6, seed=3, batches=1
    )
    x, y, sample_weight = next(iter(dataset))
    used = x["support_weight"].numpy().sum(1)
    assert len(set(used)) > 2 and used.max() < x["support_weight"].shape[1]

    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(learning_rate=0.1, steps=2), task_mapping=mapping)
    meta_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loss, _, gradients = meta_model.meta_gradients(x, y, sample_weight)
    alone = [meta_model.meta_gradients(*unpadded(x, y, sample_weight, task)) for task in range(6)]
    np.testing.assert_allclose(loss, np.mean([one[0] for one in alone]), rtol=1e-9)
    for position, gradient in enumerate(gradients):
        expected = np.mean([tf.convert_to_tensor(one[2][position]) for one in alone], axis=0)
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=1e-6)


def test_padding_reaches_no_metric():
    model, x = dense([keras.layers.BatchNormalization()])
    dataset = episodes.from_arrays(x, LABELS, (2, 4), (1, 3), (1, 2), tasks=6, seed=3, batches=1)
    x, y, sample_weight = next(iter(dataset))
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 2), "parallel")
    meta_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    right = meta_model.predict_on_batch(x).argmax(-1) == y.numpy()
    expected = right[sample_weight.numpy() > 0].mean()
    assert abs(expected - right.mean()) > 0.01  # padding would show
    logged = meta_model.evaluate(dataset, verbose=0, return_dict=True)
    np.testing.assert_allclose(logged["accuracy"], expected, atol=1e-6)
