"""Schedules of a run: who calls `anneal`, when, and with what."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.callbacks import Anneal
from keras_maml.learning_rules import SGD
from keras_maml.meta_gradients import MultiStep, Unrolled

X = {name: np.ones((4, 1, 1), "float32") for name in ("support_x", "support_y", "query_x")}
Y = np.full((4, 1, 1), -2.0, "float32")


class Counting(keras.layers.Dense):
    """Counts its calls: in compiled steps, how often it is traced."""

    traced = 0

    def call(self, inputs):
        self.traced += 1
        return super().call(inputs)


class Recorder(keras.callbacks.Callback):
    """What the estimator had in each epoch."""

    def __init__(self, stop_in=None):
        super().__init__()
        self.seen, self.traced, self.stop_in = [], [], stop_in

    def on_epoch_end(self, epoch, logs=None):
        estimator = self.model.meta_gradient
        self.seen.append((epoch, *np.round(estimator.step_weights, 6).tolist(), int(estimator.order.numpy())))
        self.traced.append(self.model.model.layers[0].traced)
        if epoch == self.stop_in:
            raise KeyboardInterrupt


def parabola(estimator=None, optimizer=None, steps=2):
    model = keras.Sequential([keras.Input((1,)), Counting(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    estimator = estimator or MultiStep(0.5, first_order_share=0.5)
    meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(SGD(0.1), estimator, steps), "parallel")
    meta_model.compile(optimizer or keras.optimizers.SGD(0.01), lambda y, p: tf.square(y[:, 0] - p[:, 0]) / 2)
    return meta_model


# Both shares are half of 4 epochs: weights (1/2, 1/2), then (1/4, 3/4), then (0, 1).
EXPECTED = [(0, 0.5, 0.5, 1), (1, 0.25, 0.75, 1), (2, 0.0, 1.0, 2), (3, 0.0, 1.0, 2)]


def episodes(batch=4):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(batch)


def test_fit_anneals_by_itself_and_traces_once():
    meta_model, recorder = parabola(), Recorder()
    meta_model.fit(episodes(), epochs=4, verbose=0, callbacks=recorder)
    assert recorder.seen == EXPECTED
    assert recorder.traced[0] == recorder.traced[-1]
    meta_model.meta_gradient.anneal(0)
    meta_model.fit(episodes(), epochs=4, verbose=0)
    np.testing.assert_array_equal(meta_model.meta_gradient.step_weights, [0, 1])
    with pytest.raises(ValueError, match="Put one into it, or pass `callbacks` as a list"):
        meta_model.fit(episodes(), callbacks=keras.callbacks.CallbackList([recorder], model=meta_model))


def test_the_callback_of_the_user_stays():
    meta_model, recorder = parabola(), Recorder()
    for first in (0, 2):  # two calls of `fit` are one run
        meta_model.fit(
            episodes(), initial_epoch=first, epochs=first + 2, verbose=0, callbacks=[Anneal(epochs=4), recorder]
        )
    assert recorder.seen == EXPECTED


def test_a_schedule_that_goes_back_is_named(recwarn):
    meta_model = parabola()
    meta_model.fit(episodes(), epochs=2, verbose=0)
    with pytest.warns(UserWarning, match="had come to 100 % of a run, and this call of `fit` begins at 0 %"):
        meta_model.fit(episodes(), epochs=2, verbose=0)
    with pytest.warns(UserWarning, match="begins at 67 %.*Anneal"):
        meta_model.fit(episodes(), initial_epoch=2, epochs=3, verbose=0)
    recwarn.clear()
    meta_model = parabola()
    for first in range(3):
        meta_model.fit(episodes(), initial_epoch=first, epochs=first + 1, verbose=0, callbacks=Anneal(epochs=3))
    assert not [warning for warning in recwarn if "goes back" in str(warning.message)]


def test_after_the_last_epoch_the_estimator_is_at_its_end():
    meta_model = parabola(MultiStep(1.0, first_order_share=1.0))
    meta_model.fit(episodes(), epochs=2, verbose=0, callbacks=Anneal(epochs=3))
    assert meta_model.meta_gradient.order == 1
    meta_model.fit(episodes(), initial_epoch=2, epochs=3, verbose=0, callbacks=Anneal(epochs=3))
    np.testing.assert_array_equal(meta_model.meta_gradient.step_weights, [0, 1])
    assert meta_model.meta_gradient.order == 2


def test_an_estimator_that_is_not_built_cannot_anneal():
    for estimator in (MultiStep(0.5), Unrolled(first_order_share=0.5)):
        with pytest.raises(ValueError, match="has nothing to anneal before it knows the number of inner steps"):
            estimator.anneal(0.5)


def test_what_is_resumed_goes_on(tmp_path):
    first, second = Recorder(stop_in=1), Recorder()
    for recorder in (first, second):
        meta_model = parabola()
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        try:
            meta_model.fit(episodes(), epochs=4, verbose=0, callbacks=[backup, recorder])
        except KeyboardInterrupt:
            continue
    assert first.seen == EXPECTED[:2] and second.seen == EXPECTED[2:]


@pytest.mark.parametrize("epochs, steps", [(1, 8), (3, 40), (100, 2)])
def test_short_runs_anneal_within_epochs(epochs, steps):
    # 100 times in a run, or a few more: at every step of the first run, every 40 / 34 steps of the second, every epoch
    # of the third, as in the paper.
    told = []
    model = parabola()
    model.meta_gradient.anneal = told.append
    anneal = Anneal()
    anneal.set_model(model)
    anneal.set_params({"epochs": epochs, "steps": steps})
    for epoch in range(epochs):
        anneal.on_epoch_begin(epoch)
        for batch in range(steps):
            anneal.on_train_batch_begin(batch)
    parts = min(steps, -(-100 // epochs))
    expected = [(epoch + part / parts) / epochs for epoch in range(epochs) for part in range(parts)]
    np.testing.assert_allclose(told, expected, atol=1e-12)


def test_one_long_epoch_is_a_run(recwarn):
    meta_model, seen = parabola(), []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            (batch, *np.round(meta_model.meta_gradient.step_weights, 6), int(meta_model.meta_gradient.order))
        )
    )
    meta_model.fit(episodes(batch=1), epochs=1, verbose=0, callbacks=[record])
    assert seen == EXPECTED and not [w for w in recwarn if "anneals" in str(w.message)]


def test_one_epoch_warns():
    with pytest.warns(UserWarning, match="anneals as the run goes on, and this run has one epoch, of one step"):
        parabola().fit(episodes(), epochs=1, verbose=0)


def test_estimators_that_do_not_anneal_get_no_callback(recwarn):
    meta_model = parabola(Unrolled())
    meta_model.fit(episodes(), epochs=1, verbose=0)
    assert not [w for w in recwarn if "anneals" in str(w.message)]
    meta_model.fit(episodes(), epochs=2, verbose=0, callbacks=[Anneal()])  # harmless


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`epochs` must be an integer of at least 1"):
        Anneal(epochs=0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`Anneal` is for a `MetaModel`"):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0, callbacks=[Anneal()])


def test_cosine_annealing_of_the_outer_rate():
    # One inner step of 0.1: phi = 1 + 0.9 (w - 1), gradient 0.9 (phi + 2). `CosineDecay(0.5, decay_steps=2, alpha=0.1)`
    # is 0.5 * (0.9 * (1 + cos(pi n / 2)) / 2 + 0.1) in step n: 0.5, 0.275, 0.05, 0.05.
    schedule = keras.optimizers.schedules.CosineDecay(0.5, decay_steps=2, alpha=0.1)
    meta_model = parabola(Unrolled(), keras.optimizers.SGD(schedule), steps=1)
    w = 3.0
    weights = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(float(meta_model.trainable_variables[0].numpy()[0, 0]))
    )
    meta_model.fit(episodes(), epochs=4, verbose=0, callbacks=[record])
    expected = []
    for rate in (0.5, 0.275, 0.05, 0.05):
        w -= rate * 0.9 * (1 + 0.9 * (w - 1) + 2)
        expected.append(w)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
