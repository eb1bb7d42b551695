"""Every preset learns from an episode, and is the same function in a file, in an export and in memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import algorithms

WAYS, STEPS = 2, 2


def network():
    """Has what any of the presets asks for: a context to adapt, normalisation to leave out, an output layer to set."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras_maml.layers.ContextParameters(2),
            keras.layers.Dense(4, "tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(WAYS),
        ]
    )


def batch():
    random = np.random.default_rng(0)
    x = {name: random.normal(size=(2, 4, 3)).astype("float32") for name in ("support_x", "query_x")}
    x["support_y"] = np.tile(np.arange(4, dtype="int32") % WAYS, (2, 1))
    return x, random.integers(0, WAYS, (2, 4))


@pytest.mark.parametrize("name", algorithms.PRESETS)
def test_learns_and_leaves(name, tmp_path):
    x, y = batch()
    preset = algorithms.PRESETS[name]
    algorithm = preset() if algorithms.get(name).steps == 0 else preset(steps=STEPS)
    meta_model = keras_maml.MetaModel(network(), algorithm, "parallel")  # XLA takes ten times as long to compile
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    meta_model.compile(keras.optimizers.Adam(0.1), loss)
    before = meta_model(x)
    logs = meta_model.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(logs["loss"])
    predictions = meta_model.predict(x, verbose=0)
    assert np.isfinite(predictions).all() and not np.allclose(predictions, before)

    meta_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), predictions, rtol=1e-4, atol=1e-5)

    meta_model.export(tmp_path / "exported")
    serving = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    for t in range(2):
        served = serving(**{part: tf.constant(values[t]) for part, values in x.items()})
        np.testing.assert_allclose(served["predictions"], predictions[t], rtol=1e-4, atol=1e-5)
