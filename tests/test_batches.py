"""Tasks that are not finite, left out of every mean."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml

MAPPINGS = ("parallel", "vectorized", "unrolled")


def episodes(tasks=4, bad=(), seed=0):
    """Regression tasks; those in `bad` have finite numbers whose squares overflow."""
    random = np.random.default_rng(seed)
    x = {
        "support_x": random.normal(size=(tasks, 5, 3)).astype("float32"),
        "support_y": random.normal(size=(tasks, 5, 1)).astype("float32"),
        "query_x": random.normal(size=(tasks, 7, 3)).astype("float32"),
    }
    y = random.normal(size=(tasks, 7, 1)).astype("float32")
    for task in bad:
        x["support_y"][task] = 1e30
    return x, y


def some(batch, kept):
    x, y = batch
    return {name: value[kept] for name, value in x.items()}, y[kept]


def compiled(skip=True, mapping="parallel", normalised=True, **arguments):
    keras.utils.set_random_seed(0)
    normalisation = [keras_maml.layers.BatchNormalization("moving")] if normalised else []
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), *normalisation, keras.layers.Dense(1)])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.1, 2), mapping, skip_non_finite=skip, **arguments)
    meta_model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    return meta_model


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_gradient_is_that_of_the_other_tasks(mapping):
    batch, kept = episodes(bad=(1,)), [0, 2, 3]
    loss, _, gradients = compiled(mapping=mapping).meta_gradients(*batch)
    expected_loss, _, expected = compiled(skip=False, mapping=mapping).meta_gradients(*some(batch, kept))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_without_it_nothing_is_left_out():
    loss, _, gradients = compiled(skip=False).meta_gradients(*episodes(bad=(1,)))
    assert not np.isfinite(loss)
    assert not all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    "mapping, bad", [("parallel", (1, 3)), ("vectorized", (0,)), ("unrolled", (1, 3)), ("parallel", ())]
)
def test_a_step_updates_weights_state_and_logs_as_one_without_them(mapping, bad):
    batch = episodes(bad=bad)
    kept = [task for task in range(4) if task not in bad]
    meta_model, expected = compiled(mapping=mapping, log_before=True), compiled(False, mapping, log_before=True)
    logs = meta_model.train_on_batch(*batch, return_dict=True)
    expected_logs = expected.train_on_batch(*some(batch, kept), return_dict=True)
    assert logs.pop("non_finite_tasks") == len(bad)
    assert logs.keys() == expected_logs.keys()
    for name, value in logs.items():
        np.testing.assert_allclose(value, expected_logs[name], rtol=1e-5, err_msg=name)
    for one, other in zip(meta_model.model.weights, expected.model.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7, err_msg=one.path)


def test_a_batch_of_such_tasks_alone_changes_no_weight():
    meta_model = compiled()
    before = [w.numpy() for w in meta_model.model.weights]
    logs = meta_model.train_on_batch(*episodes(bad=range(4)), return_dict=True)
    assert logs["non_finite_tasks"] == 4
    assert np.isnan(logs["loss"]) and np.isnan(logs["mae"])  # 0 would be the best of losses
    for value, weight in zip(before, meta_model.model.weights, strict=True):
        np.testing.assert_array_equal(value, weight, err_msg=weight.path)


def test_a_gradient_that_is_not_finite_counts_with_a_finite_loss():
    @keras.saving.register_keras_serializable("tests")
    def root(t):
        return tf.sqrt(tf.abs(t))  # 0 at 0, where its derivative is infinite

    dense = keras.layers.Dense(1, root, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((1,)), dense])
    meta_model = keras_maml.MetaModel(model, keras_maml.FOMAML(0.0001, 1), skip_non_finite=True)
    meta_model.compile(keras.optimizers.SGD(1.0), "mse")
    ones = np.ones((2, 1, 1), "float32")
    query_x = ones * [[[0.0]], [[1.0]]]
    x = {"support_x": ones, "support_y": ones, "query_x": query_x.astype("float32")}
    logs = meta_model.train_on_batch(x, ones * 2, return_dict=True)
    assert logs["non_finite_tasks"] == 1
    np.testing.assert_allclose(logs["loss"], 1.0, rtol=1e-5)  # (2 - root(1))^2, of the other task alone
    assert np.isfinite(model.weights[0]).all()


def test_evaluation_counts_and_leaves_out():
    batch = episodes(bad=(2,))
    found = compiled().evaluate(*batch, batch_size=4, return_dict=True, verbose=0)
    expected = compiled(False).evaluate(*some(batch, [0, 1, 3]), batch_size=4, return_dict=True, verbose=0)
    assert found.pop("non_finite_tasks") == 1
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_weights_of_queries_still_count():
    x, y = episodes(bad=(0,))
    weight = np.random.default_rng(1).uniform(size=y.shape[:2]).astype("float32")
    meta_model, expected = compiled(), compiled(False)
    logs = meta_model.train_on_batch(x, y, weight, return_dict=True)
    kept = [1, 2, 3]
    expected_logs = expected.train_on_batch(*some((x, y), kept), weight[kept], return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected_logs["loss"], rtol=1e-5)
    np.testing.assert_allclose(logs["mae"], expected_logs["mae"], rtol=1e-5)


def test_it_is_saved(tmp_path):
    meta_model = compiled()
    meta_model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").skip_non_finite is True


def test_a_task_whose_state_alone_is_not_finite_is_left_out():
    # Squares of 1e30 make an infinite variance, of which outputs are 0: loss and gradients are finite, and the moving
    # moments would be lost for good.
    model = keras.Sequential(
        [keras.Input((1,)), keras_maml.layers.BatchNormalization("moving", momentum=0.5), keras.layers.Dense(1)]
    )
    meta_model = keras_maml.MetaModel(model, keras_maml.FOMAML(0.1, 1), skip_non_finite=True)
    meta_model.compile("sgd", "mse")
    x = {name: np.array([[[1.0], [3.0]], [[1.0], [3.0]]], "float32") for name in ("support_x", "query_x", "support_y")}
    x["support_x"][1] *= 1e30
    logs = meta_model.train_on_batch(x, x["support_y"], return_dict=True)
    assert logs["non_finite_tasks"] == 1
    # Twice, for supports and queries, half of the mean of 2 and of the variance of 1.
    np.testing.assert_allclose(model.layers[0].moving_mean, [1.5], rtol=1e-6)
    np.testing.assert_allclose(model.layers[0].moving_variance, [1], rtol=1e-6)
