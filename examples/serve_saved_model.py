"""How is a learner served, so that it adapts to tasks that come in with requests?

Trains a small classifier of two-dimensional points for a moment, exports it, and then plays the server: it loads the
SavedModel with TensorFlow alone and adapts to tasks with other numbers of supports than in training.

    python examples/serve_saved_model.py

`serving_default` answers a request that carries supports and queries. `adapt` and `predict` split it: adapt once, keep
the weights that come back (they are plain tensors, a few kilobytes here), predict many times. The server keeps nothing.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np

import keras_maml

WAYS = 3

SERVER = """
import sys
sys.modules["keras_maml"] = None                         # importing it would fail
import numpy as np
import tensorflow as tf

served = tf.saved_model.load(sys.argv[1])
serve, adapt, predict = (served.signatures[name] for name in ("serving_default", "adapt", "predict"))
generator = np.random.default_rng(1)
for shots in (1, 5, 50):
    centres = generator.uniform(-2, 2, (3, 2))
    labels = np.tile(np.arange(3), shots)
    support_x = tf.constant(centres[labels] + 0.2 * generator.normal(size=(3 * shots, 2)), tf.float32)
    query_x = tf.constant(centres.repeat(100, 0) + 0.2 * generator.normal(size=(300, 2)), tf.float32)
    support_y = tf.constant(labels, tf.int32)

    at_once = serve(support_x=support_x, support_y=support_y, query_x=query_x)["predictions"]
    weights = adapt(support_x=support_x, support_y=support_y)
    one_by_one = tf.concat([predict(query_x=query_x[i : i + 1], **weights)["predictions"] for i in range(300)], 0)

    accuracy = np.mean(np.argmax(at_once, -1) == np.arange(3).repeat(100))
    size = sum(weight.numpy().nbytes for weight in weights.values())
    print(
        f"{3 * shots:3d} supports: accuracy {accuracy:.2f}, adapted weights {size} bytes, greatest difference of "
        f"single requests {np.abs(at_once - one_by_one).max():.1e}"
    )
"""


def points(seed):
    """Tasks: three clouds of points around random centres, and which of them a point is of."""
    generator = np.random.default_rng(seed)
    tasks, shots, queries = 500, 5, 10
    centres = generator.uniform(-2, 2, (tasks, WAYS, 2))

    def draw(count):
        labels = np.tile(np.arange(WAYS), (tasks, count))
        x = np.take_along_axis(centres, labels[..., None], 1) + 0.2 * generator.normal(size=(*labels.shape, 2))
        return x.astype("float32"), labels.astype("int32")

    (support_x, support_y), (query_x, query_y) = draw(shots), draw(queries)
    return {"support_x": support_x, "support_y": support_y, "query_x": query_x}, query_y


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=pathlib.Path, default=None, help="where the SavedModel stays")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)

    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(64),
            # Queries are normalised by the moments of the supports: right for a request with one query.
            keras_maml.layers.BatchNormalization("support"),
            keras.layers.ReLU(),
            keras.layers.Dense(WAYS),
        ]
    )
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(learning_rate=0.5, steps=5))
    meta_model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    meta_model.fit(*points(0), batch_size=25, epochs=5, verbose=2)

    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.output_dir or pathlib.Path(scratch)) / "saved_model"
        meta_model.export(folder)
        subprocess.run([sys.executable, "-c", SERVER, folder], check=True)


if __name__ == "__main__":
    main()
