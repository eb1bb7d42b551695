"""The same evaluation in other ways of running it, in a process of its own with two logical CPU devices.

What is compared with: float32, one device, one step at a time.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest

WORKER = '''
import pickle, sys
import numpy as np, tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from keras import layers
import keras_maml
from keras_maml.evaluation import Evaluator

WAYS = 3

def model():
    """A convolution with weights that do not depend on where it is made; its moments are those of the batch."""
    body = [layers.Conv2D(4, 3, strides=2), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()]
    made = keras.Sequential([keras.Input((6, 6, 1)), *body, layers.Dense(WAYS, dtype="float32")])
    rng = np.random.default_rng(0)
    for variable in made.trainable_variables:
        variable.assign(rng.normal(0.3, 0.3, variable.shape))
    return made

def episodes(tasks):
    """The first of twelve."""
    rng, labels = np.random.default_rng(1), np.tile(np.arange(WAYS), 2)
    of_tasks = lambda: np.stack([rng.permutation(labels) for _ in range(12)]).astype("int32")
    x = {
        "support_x": rng.normal(size=(12, 6, 6, 6, 1)).astype("float32"),
        "support_y": of_tasks(),
        "query_x": rng.normal(size=(12, 6, 6, 6, 1)).astype("float32"),
        "domain": np.arange(12, dtype="int32"),
    }
    weight = rng.uniform(0.1, 2.0, (12, 6)).astype("float32")
    weight[:, 0] = 0
    return tf.data.Dataset.from_tensor_slices((x, of_tasks(), weight)).take(tasks).batch(4)

def reports(*tasks, strategy=None, policy="float32", **more):
    """Of the first tasks, as JSON, by one model."""
    keras.config.set_dtype_policy(policy)
    with (strategy or tf.distribute.get_strategy()).scope():
        meta_model = keras_maml.MetaModel(model(), keras_maml.FOMAML(0.1, 2), "parallel")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        meta_model.compile("sgd", loss, metrics=["accuracy"], weighted_metrics=["accuracy"], **more)
    evaluator = Evaluator(meta_model, (0, 3))
    return [evaluator.report(episodes(size), asked, verbose=0).to_json() for size, asked in tasks]

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
answers = {
    "plain": reports((12, None)),
    "three at once": reports((11, None), (12, 6), steps_per_execution=3),
    "two devices": reports((12, None), (11, None), strategy=two),
    "two devices, three at once": reports((9, None), strategy=two, steps_per_execution=3),
    "mixed_float16": reports((12, None), policy="mixed_float16"),
    "mixed_bfloat16": reports((12, None), policy="mixed_bfloat16"),
}
pickle.dump(answers, open(sys.argv[1], "wb"))
'''


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    from keras_maml import EpisodeReport

    path = tmp_path_factory.mktemp("evaluation") / "answers.pickle"
    done = subprocess.run([sys.executable, "-c", WORKER, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return {name: list(map(EpisodeReport.from_json, texts)) for name, texts in pickle.loads(path.read_bytes()).items()}


# Batches of 4 leave a last one of 4, 3 or 1 tasks, of which the second device gets 2, 1 or none. For the 6 tasks that
# are asked for, three batches at once make 12.
@pytest.mark.parametrize(
    "name, tasks", [("three at once", (11, 6)), ("two devices", (12, 11)), ("two devices, three at once", (9,))]
)
def test_the_same_numbers(reports, name, tasks):
    plain = reports["plain"][0]
    for report, count in zip(reports[name], tasks, strict=True):
        assert report.tasks == count
        np.testing.assert_array_equal(report.episodes, plain.episodes[:count])
        assert report.metrics == plain.metrics == ("loss", "accuracy", "weighted_accuracy")
        for metric, values in plain.values.items():
            np.testing.assert_allclose(report.values[metric], values[:count], rtol=1e-6, atol=1e-6, err_msg=metric)
        np.testing.assert_allclose(report.loss_before, plain.loss_before[:count], rtol=1e-6, atol=1e-6)
        assert report.domains == plain.domains[:count]


# Sums of up to 36 products in numbers of 11 and 8 bits: relative errors of a few 2^-11 = 5e-4 and 2^-8 = 4e-3 in the
# features, and as much in the gradients of three steps.
@pytest.mark.parametrize("name, tolerance", [("mixed_float16", 0.01), ("mixed_bfloat16", 0.06)])
def test_mixed_precision(reports, name, tolerance):
    found, plain = reports[name][0], reports["plain"][0]
    assert (found.protocol["precision"], plain.protocol["precision"]) == (name, "float32")
    np.testing.assert_array_equal(found.episodes, plain.episodes)
    assert not np.array_equal(found.of("loss"), plain.of("loss"))  # else it was float32
    np.testing.assert_allclose(found.values["loss"], plain.values["loss"], rtol=tolerance, atol=tolerance)
    # Five queries of weight in a task: where two logits are close, one may go the other way.
    assert np.abs(found.values["accuracy"] - plain.values["accuracy"]).mean() < 0.03
    assert abs(found.compare(plain).of("loss").mean) < tolerance / 2


def test_what_is_compared(reports):
    (plain,) = reports["plain"]
    assert plain.steps == (0, 3)
    assert len(set(plain.episodes.tolist())) == plain.tasks == 12
    # Values differ between tasks and steps, and weights of queries are of account.
    assert np.abs(np.diff(plain.values["loss"], axis=0)).min() > 1e-5
    assert np.abs(np.diff(plain.values["loss"], axis=1)).min() > 1e-5
    assert np.abs(plain.values["accuracy"] - plain.values["weighted_accuracy"]).max() > 0.01
