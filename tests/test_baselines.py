"""Baselines against nearest centroids and softmax regression in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.recipes import baselines, networks
from keras_maml.selection import Head

RANDOM = np.random.default_rng(0)


def episode(ways=3, shots=2, queries=4, tasks=2):
    labels = np.tile(np.repeat(np.arange(ways, dtype="int32"), shots), (tasks, 1))
    x = {
        "support_x": RANDOM.integers(0, 256, (tasks, ways * shots, 4, 4, 1), "uint8"),
        "support_y": labels,
        "query_x": RANDOM.integers(0, 256, (tasks, ways * queries, 4, 4, 1), "uint8"),
    }
    return x, np.tile(np.repeat(np.arange(ways, dtype="int32"), queries), (tasks, 1))


def flat(images):
    return images.reshape(images.shape[0], -1) / 255.0


def test_nearest_centroid_of_pixels_by_hand():
    x, _ = episode()
    rival = baselines.nearest_centroid(networks.pixels((4, 4, 1)), ways=3)
    predictions = rival(x).numpy()
    for task in range(2):
        features, labels = flat(x["support_x"][task]), x["support_y"][task]
        centroids = np.stack([features[labels == c].mean(0) for c in range(3)])
        distances = np.linalg.norm(flat(x["query_x"][task])[:, None] - centroids, axis=-1)
        assert np.array_equal(predictions[task].argmax(1), distances.argmin(1))


def test_a_step_of_fine_tuning_by_hand():
    # From weights of 0 all classes have 1/3, so the gradient of the logits of example n is (1/3 - onehot_n) / 6, and a
    # step of 0.5 leaves the kernel 0.5 F' (onehot - 1/3) / 6 and the bias 0.5 times the mean of (onehot - 1/3): 0 here.
    x, _ = episode()
    body = networks.pixels((4, 4, 1))
    rival = baselines.fine_tuning(body, learning_rate=0.5, steps=1, ways=3, layers=Head())
    learner = rival.adapt(x["support_x"][0], x["support_y"][0])
    kernel, bias = learner.layers[-1].get_weights()
    onehot = np.eye(3)[x["support_y"][0]]
    expected = 0.5 * flat(x["support_x"][0]).T @ (onehot - 1 / 3) / 6
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    np.testing.assert_allclose(bias, 0, atol=1e-6)


def test_rivals_of_one_body_compare_on_the_same_episodes():
    x, y = episode()
    body = networks.pixels((4, 4, 1))
    centroid = keras_maml.evaluate_episodes(baselines.nearest_centroid(body, 3), (x, y), 2, steps=0, verbose=0)
    tuned = baselines.fine_tuning(body, 0.5, steps=2, ways=3)
    report = keras_maml.evaluate_episodes(tuned, (x, y), 2, steps=(0, 2), verbose=0)
    assert report.of("loss", 0) == pytest.approx(np.log(3), rel=1e-5)  # weights of 0 guess
    assert report.compare(centroid, steps=[(2, 0)]).of("accuracy").tasks == 2


def test_pretraining_learns_the_classes_in_the_body():
    # Classes that differ in brightness alone: after pretraining one drawing of each new brightness is enough.
    def drawings(brightness):
        noise = RANDOM.normal(0, 4, (len(brightness), 20, 4, 4, 1))
        images = np.clip(np.array(brightness)[:, None, None, None, None] + noise, 0, 255)
        return images.reshape(-1, 4, 4, 1).astype("uint8"), np.repeat([f"class {b}" for b in brightness], 20)

    keras.utils.set_random_seed(0)
    flattened = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(8)]
    body = keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), *flattened])
    before = body.layers[-1].kernel.numpy().copy()
    images, labels = drawings([20, 90, 160, 230])
    history = baselines.pretrain(body, images, labels, 60, 16, keras.optimizers.Adam(0.03), seed=0, verbose=0).history
    assert len(history["loss"]) == 1 and history["loss"][0] < np.log(4)
    assert np.abs(body.layers[-1].kernel.numpy() - before).max() > 0.01
    test = keras_maml.episodes.from_arrays(*drawings([40, 130, 220]), 3, 1, 5, tasks=10, seed=0)
    rival = baselines.nearest_centroid(body, 3)
    assert keras_maml.evaluate_episodes(rival, test, 10, steps=0, verbose=0).summary("accuracy").mean > 0.9


def test_classes_are_numbered_by_sorted_label_and_rows_stay_together():
    x, labels = np.arange(12, dtype="float32")[:, None], np.array([70, 3, 3, 8] * 3)
    batches = [(a.numpy(), b.numpy()) for a, b in baselines.examples_of_classes(x, labels, 6, seed=1).take(2)]
    rows = np.concatenate([a[:, 0] for a, _ in batches]).astype(int)
    assert sorted(rows) == list(range(12))
    assert np.array_equal(np.concatenate([b for _, b in batches]), np.array([2, 0, 0, 1] * 3)[rows])


def test_joint_examples_are_those_of_all_tasks():
    x = {
        "support_x": np.arange(6.0).reshape(2, 3, 1),
        "support_y": np.arange(6.0).reshape(2, 3, 1) + 10,
        "query_x": np.arange(6.0, 10.0).reshape(2, 2, 1),
    }
    y = np.arange(6.0, 10.0).reshape(2, 2, 1) + 10
    weight = np.array([[1.0, 0.0], [1.0, 1.0]])
    merged_x, merged_y = next(iter(baselines.examples_of_tasks(tf.data.Dataset.from_tensors((x, y)))))
    assert merged_x[:, 0].numpy().tolist() == [0, 1, 2, 6, 7, 3, 4, 5, 8, 9]
    assert np.array_equal(merged_y, merged_x + 10)
    weighted = next(iter(baselines.examples_of_tasks(tf.data.Dataset.from_tensors((x, y, weight)))))
    assert weighted[2].numpy().tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]


def test_joint_training_is_linear_regression_on_all_points():
    # Tasks y = a x with a of 1 and 3, the same points: one line has to be a = 2. Adapted by one step of 0.25 on points
    # with mean x^2 of 1, a moves by 0.25 * 2 (a_task - 2): to 1.5 and 2.5.
    points = np.array([1.0, -1.0], "float32").reshape(1, 2, 1)
    slopes = np.array([1.0, 3.0], "float32").reshape(2, 1, 1)
    x = {"support_x": np.repeat(points, 2, 0), "support_y": slopes * points, "query_x": np.repeat(points, 2, 0)}
    data = tf.data.Dataset.from_tensors((x, slopes * points)).repeat()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    baselines.train_jointly(model, data, 60, "mse", keras.optimizers.SGD(0.25), verbose=0)
    assert float(model.layers[0].kernel[0, 0]) == pytest.approx(2, abs=1e-4)
    rival = baselines.fine_tuning(model, learning_rate=0.25, steps=1, loss="mse")
    for task, slope in enumerate((1.5, 2.5)):
        learner = rival.adapt(x["support_x"][task], x["support_y"][task])
        assert float(learner.layers[-1].kernel[0, 0]) == pytest.approx(slope, abs=1e-4)


def two_inputs():
    inputs = [keras.Input((2,)), keras.Input((2,))]
    return keras.Model(inputs, keras.layers.Add()(inputs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: baselines.classifier(keras.Sequential([keras.layers.Dense(2)]), 3), "must be a built"),
        (lambda: baselines.classifier(keras.Sequential([keras.Input((4, 4)), keras.layers.ReLU()]), 3), "None, 4, 4"),
        (lambda: baselines.classifier(two_inputs(), 3), "one input .* 2 inputs"),
        (lambda: baselines.classifier(networks.pixels((4, 4, 1)), 1), "classes=1"),
        (lambda: baselines.examples_of_classes(np.zeros((3, 1)), [0, 1], 1), "3 and 2 rows"),
        (lambda: baselines.examples_of_classes(np.zeros((2, 1)), [0, 1], 3), "batch_size=3"),
        (lambda: baselines.examples_of_tasks([1, 2]), "tf.data.Dataset"),
        (lambda: baselines.fine_tuning(networks.curve_net()), "needs a `loss=`"),
        (lambda: baselines.pretrain(networks.pixels(), np.zeros((2, 28, 28, 1)), [0, 1], 0), "batches=0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
