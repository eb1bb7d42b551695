"""The multi-step loss and the annealed order of derivatives, on a parabola by hand and by finite differences.

The parabola is that of `test_closed_form.py`: w = 3, the support target 1, the query target -2, steps of 0.1, so that
phi_k = 1 + 2 * 0.9^k, and the query loss after k steps, (phi_k + 2)^2 / 2, has the derivative (phi_k + 2) * 0.9^k.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import inner_loop
from keras_maml.layers import PerStepBatchNormalization
from keras_maml.learning_rules import SGD, LayerwiseSGD
from keras_maml.meta_gradients import FirstOrder, MultiStep, Unrolled

X = {name: np.ones((1, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
Y = np.full((1, 1, 1), -2.0, "float32")
PHI = [1 + 2 * 0.9**k for k in (1, 2, 3)]


class Counting(keras.layers.Dense):
    """Counts the passes that run, in eager steps, or that are traced."""

    passes = 0

    def call(self, inputs):
        self.passes += 1
        return super().call(inputs)


def half_square(y, predictions):
    return tf.square(y[:, 0] - predictions[:, 0]) / 2


def parabola(estimator, steps=3, task_mapping="parallel", optimizer=None, eager=True):
    model = keras.Sequential([keras.Input((1,)), Counting(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(SGD(0.1), estimator, steps), task_mapping)
    meta_model.compile(optimizer or keras.optimizers.SGD(0.0), half_square, run_eagerly=eager)
    return meta_model


def gradient(meta_model, progress=None):
    if progress is not None:
        meta_model.meta_gradient.anneal(progress)
    loss, predictions, (slope,) = meta_model.meta_gradients(X, Y)
    # Whatever the weights, logs show what evaluation will: the loss after the last step.
    np.testing.assert_allclose([loss, predictions[0, 0, 0]], [(PHI[-1] + 2) ** 2 / 2, PHI[-1]], rtol=1e-6)
    return slope[0, 0]


# share 0.1: at progress 0 all weights are 1/3, at 0.05 they are 1/6, 1/6, 2/3; at 0.099 the minimum holds, 0.03 / 3.
@pytest.mark.parametrize(
    ("progress", "weights"),
    [(0, (1 / 3, 1 / 3, 1 / 3)), (0.05, (1 / 6, 1 / 6, 2 / 3)), (0.099, (0.01, 0.01, 0.98)), (0.1, (0, 0, 1))],
)
def test_weights_are_annealed(progress, weights):
    meta_model = parabola(MultiStep(multi_step_share=0.1))
    expected = sum(w * (phi + 2) * 0.9**k for k, (w, phi) in enumerate(zip(weights, PHI, strict=True), 1))
    np.testing.assert_allclose(gradient(meta_model, progress), expected, rtol=1e-6)
    np.testing.assert_allclose(meta_model.meta_gradient.step_weights, weights, rtol=1e-6, atol=1e-9)


def test_first_order_terms_of_a_multi_step_loss():
    # Inner gradients are constants: d phi_k / d w = 1.
    slope = gradient(parabola(MultiStep(1.0, truncate=0)), 0.0)
    np.testing.assert_allclose(slope, sum(phi + 2 for phi in PHI) / 3, rtol=1e-6)


@pytest.mark.parametrize("estimator", [Unrolled(first_order_share=0.5), MultiStep(0.2, first_order_share=0.5)])
def test_order_of_derivatives_is_annealed(estimator):
    meta_model = parabola(estimator)
    exact = (PHI[-1] + 2) * 0.9**3
    # An estimator that was never told where the run is, is at its end.
    for progress, expected in ((None, exact), (0.3, PHI[-1] + 2), (0.5, exact), (1.0, exact)):
        np.testing.assert_allclose(gradient(meta_model, progress), expected, rtol=1e-6)


def test_passes_that_have_no_weight_do_not_run():
    meta_model = parabola(MultiStep(0.1))
    layer = meta_model.model.layers[0]
    for progress, queries in ((0.0, 3), (0.1, 1)):
        gradient(meta_model, progress)  # traces the shapes of predictions, too
        layer.passes = 0
        gradient(meta_model)
        traced = parabola(Unrolled())
        gradient(traced)
        traced.model.layers[0].passes = 0
        gradient(traced)
        assert layer.passes - traced.model.layers[0].passes == queries - 1


def data(tasks=2):
    numbers = np.random.default_rng(0)
    shapes = {"support_x": (6, 3), "support_y": (6, 2), "query_x": (4, 3)}
    x = {name: tf.constant(numbers.normal(size=(tasks, *shape))) for name, shape in shapes.items()}
    return x, tf.constant(numbers.normal(size=(tasks, 4, 2)))


def network(estimator):
    """With rows for each step that differ, which do not adapt, and a learned rate for each step."""
    keras.utils.set_random_seed(0)
    norm = PerStepBatchNormalization(3, "support", gamma_initializer="random_normal", name="norm")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), norm, keras.layers.Dense(2)])
    norm.gamma.assign_add(tf.ones_like(norm.gamma))
    algorithm = keras_maml.Algorithm(LayerwiseSGD(0.3), estimator, 3, layers=keras_maml.exclude("norm"))
    meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
    meta_model.compile("sgd", "mse")
    return meta_model


def test_multi_step_by_finite_differences(float64):
    # The objective, sum_k w_k L(phi_k), comes from a pass of its own, and a central difference of 1e-6 along one
    # direction for each variable: errors of 1e-12 times a third derivative, and of 1e-16 / 1e-6.
    # With the moments of supports, a loss depends on the iterate through the state as well.
    meta_model = network(MultiStep(1.0))
    weights = (0.25, 0.125, 0.625)
    meta_model.meta_gradient.step_weights.assign(weights)
    x, y = data()

    def one_task(task, variables):
        iterates = task.iterates(variables, at=(1, 2, 3))
        losses = [task.loss(params, state, on="query") for params, state in iterates]
        total = sum(w * loss for w, (loss, _, _) in zip(weights, losses, strict=True))
        return {"predictions": losses[-1][1], "loss": total}, (), ()

    @tf.function(autograph=False)
    def objective(values):
        return tf.reduce_mean(meta_model._run(one_task, x, y, variables=values, training=True)[0]["loss"])

    values = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
    gradients = tf.function(meta_model.meta_gradients, autograph=False)(x, y)[2]
    numbers = np.random.default_rng(1)
    for i, value in enumerate(values):
        direction = numbers.normal(size=value.shape)
        moved = [[v + sign * 1e-6 * direction if j == i else v for j, v in enumerate(values)] for sign in (1, -1)]
        slope = (objective(moved[0]) - objective(moved[1])) / 2e-6
        path = meta_model.trainable_variables[i].path
        np.testing.assert_allclose(np.sum(gradients[i] * direction), slope, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("mapping", ["parallel", "vectorized", "unrolled"])
def test_one_trace_does_all_in_every_mapping(mapping):
    both = MultiStep(0.5, first_order_share=0.5)
    meta_model = parabola(both, 2, mapping)
    step = tf.function(meta_model.meta_gradients, autograph=False)
    x, y = {name: np.ones((2, 1, 1), "float32") for name in X}, np.full((2, 1, 1), -2.0, "float32")
    # Weights (1/2, 1/2) and (1/4, 3/4) with constant inner gradients, then (0, 1) with all derivatives.
    expected = ((PHI[0] + PHI[1]) / 2 + 2, PHI[0] / 4 + 3 * PHI[1] / 4 + 2, (PHI[1] + 2) * 0.9**2)
    for progress, slope in zip((0.0, 0.25, 0.5), expected, strict=True):
        meta_model.meta_gradient.anneal(progress)
        np.testing.assert_allclose(step(x, y)[2][0], [[slope]], rtol=1e-5)
    assert step.experimental_get_tracing_count() == 1


def test_steps_in_a_loop(monkeypatch):
    monkeypatch.setattr(inner_loop, "MOST_UNROLLED_STEPS", 0)
    meta_model = parabola(MultiStep(1.0, first_order_share=0.5))
    for progress, slope in ((0.0, sum(PHI) / 3 + 2), (1.0, (PHI[2] + 2) * 0.9**3)):
        np.testing.assert_allclose(gradient(meta_model, progress), slope, rtol=1e-6)


def test_check_compares_the_end_of_the_run():
    # In its middle the gradient is not that of the loss that logs show.
    meta_model = parabola(MultiStep(0.5, first_order_share=0.5), 2)
    meta_model.meta_gradient.anneal(0.25)
    found = keras_maml.check(meta_model, tf.data.Dataset.from_tensors((X, Y)))
    assert "finite differences in float64" in found.facts["meta-gradient"]
    assert not [finding for finding in found.findings if finding.code == "wrong-meta-gradient"]
    np.testing.assert_array_equal(meta_model.meta_gradient.step_weights, [0.25, 0.75])  # as they were
    assert int(meta_model.meta_gradient.order.numpy()) == 1


def test_masks_of_predictions_pass_through_the_branches():
    # Inputs of 0 are padding: with a mask, the loss is that of the other entries alone.
    model = keras.Sequential([keras.Input((2, 1)), keras.layers.Masking(), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    x = {name: np.ones((1, 1, 2, 1)) for name in ("support_x", "support_y")}
    x["query_x"] = np.array([[[[1.0], [0.0]]]])
    found = []
    for estimator in (FirstOrder(), Unrolled(first_order_share=1.0)):
        meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(SGD(0.1), estimator, 1), "parallel")
        meta_model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
        meta_model.meta_gradient.anneal(0.0)
        found.append(meta_model.train_on_batch(x, np.full((1, 1, 2, 1), -2.0)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_without_steps_it_is_unrolled():
    # Prototypes alone: queries are judged once, with the weight 1, whatever the share of the run.
    def made(estimator):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)])
        algorithm = keras_maml.Algorithm(SGD(), estimator, 0, start=keras_maml.PrototypeHead())
        meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
        meta_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return meta_model

    x = {"support_x": np.eye(2)[None], "query_x": 2 * np.eye(2)[None], "support_y": np.array([[0, 1]])}
    expected = made(Unrolled()).meta_gradients(x, np.array([[0, 1]]))[2]
    for share in (0, 1):
        meta_model = made(MultiStep())
        meta_model.meta_gradient.anneal(share)
        np.testing.assert_array_equal(meta_model.meta_gradient.step_weights, [1])
        for actual, gradient in zip(meta_model.meta_gradients(x, np.array([[0, 1]]))[2], expected, strict=True):
            np.testing.assert_allclose(actual, gradient, rtol=1e-6)


def test_arguments_out_of_range():
    for share in (0, 1.5, -1, True, "0.1"):
        with pytest.raises(ValueError, match=r"`multi_step_share` must be a share of the run in \(0, 1\]"):
            MultiStep(share)
        with pytest.raises(ValueError, match=r"`first_order_share` must be a share of the run in \(0, 1\], or None"):
            Unrolled(first_order_share=share)
    with pytest.raises(ValueError, match=r"use `Unrolled\(\)`"):
        MultiStep(None)
    with pytest.raises(ValueError, match="with `truncate=0`"):
        MultiStep(first_order_share=0.5, truncate=0)
    for progress in (-0.1, 1.1, True, None):
        with pytest.raises(ValueError, match="`progress` must be the share"):
            parabola(MultiStep()).meta_gradient.anneal(progress)


def test_configuration_round_trips():
    estimator = MultiStep(0.2, first_order_share=0.3, truncate=2, rematerialize=True)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(estimator)))
    assert keras.saving.deserialize_keras_object(config).get_config() == estimator.get_config()
    assert MultiStep().get_config()["multi_step_share"] == 0.1 and Unrolled().get_config()["first_order_share"] is None


def test_estimators_that_do_not_anneal_have_no_weights():
    for estimator in (Unrolled(), FirstOrder()):
        meta_model = parabola(estimator)
        meta_model.meta_gradient.anneal(0.5)
        assert not meta_model.meta_gradient.weights and not meta_model.meta_gradient.anneals
