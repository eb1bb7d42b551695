import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.callbacks import AdaptationCurve, LearnedRates, NonFiniteTasks

FIXED = keras_maml.episodes.fixed


def compiled(learning_rate=0.01, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(learning_rate, 1), "parallel", **arguments)
    meta_model.compile("adam", "mse", metrics=["mae"])
    return meta_model


def waves(seed=0, tasks=4):
    return keras_maml.datasets.sinusoid(shots=5, queries=5, tasks=tasks, seed=seed)


class Recorder(keras.callbacks.Callback):
    """Keeps the logs that it sees."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


class TestAdaptationCurve:
    def test_logs_what_the_report_says(self):
        meta_model, recorder = compiled(), Recorder()
        curve = AdaptationCurve(waves(FIXED(12)), tasks=12, steps=(0, 2))
        # `fit` runs it before the recorder, though it stands behind.
        history = meta_model.fit(
            waves(), steps_per_epoch=2, epochs=2, verbose=0, callbacks=[recorder, curve]
        ).history
        report = keras_maml.evaluate_episodes(meta_model, waves(FIXED(12)), tasks=12, steps=(0, 2), verbose=0)
        for name in ("loss", "mae"):
            for steps in (0, 2):
                logged = history[f"{name}_after_{steps}"]
                assert len(logged) == 2
                np.testing.assert_allclose(logged[1], report.summary(name, steps).mean, rtol=1e-6)
                assert recorder.logs[1][f"{name}_after_{steps}"] == logged[1]
                assert logged[0] != logged[1]
        np.testing.assert_array_equal(curve.reports[1].episodes, curve.reports[0].episodes)

    def test_every_other_epoch_and_the_last(self):
        curve = AdaptationCurve(waves(FIXED(4)), tasks=4, steps=0, every=2)
        compiled().fit(waves(), steps_per_epoch=1, epochs=5, verbose=0, callbacks=[curve])
        assert list(curve.reports) == [0, 2, 4]

    def test_the_last_epoch_is_judged_and_files_have_it(self, tmp_path):
        curve = AdaptationCurve(waves(FIXED(4)), tasks=4, steps=0, every=3)
        log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
        compiled().fit(waves(), steps_per_epoch=1, epochs=5, verbose=0, callbacks=[log, curve])
        assert list(curve.reports) == [0, 3, 4]
        header, *rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
        column = [row[header.index("mae_after_0")] for row in rows]
        assert [value == "NA" for value in column] == [False, True, True, False, False]

    def test_others_can_monitor_it(self):
        stop = keras.callbacks.EarlyStopping(monitor="loss_after_1", mode="min", patience=0, min_delta=1e9)
        curve = AdaptationCurve(waves(FIXED(4)), tasks=4, steps=1)
        history = compiled().fit(waves(), steps_per_epoch=1, epochs=4, verbose=0, callbacks=[stop, curve])
        assert len(history.epoch) == 2  # the second is no such improvement

    def test_tensorboard_has_it(self, tmp_path):
        board = keras.callbacks.TensorBoard(tmp_path)
        curve = AdaptationCurve(waves(FIXED(4)), tasks=4, steps=1)
        compiled().fit(waves(), steps_per_epoch=1, epochs=1, verbose=0, callbacks=[board, curve])
        tags = set()
        for file in tmp_path.rglob("events*"):
            for event in tf.compat.v1.train.summary_iterator(str(file)):
                tags |= {value.tag for value in event.summary.value}
        assert "epoch_mae_after_1" in tags

    def test_a_training_run_is_the_same_with_it(self):
        plain, judged = compiled(), compiled()
        plain.fit(waves(), steps_per_epoch=3, epochs=2, verbose=0)
        curve = AdaptationCurve(waves(FIXED(4)), tasks=4, steps=(0, 3))
        judged.fit(waves(), steps_per_epoch=3, epochs=2, verbose=0, callbacks=[curve])
        for one, other in zip(plain.weights, judged.weights, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_fresh_episodes_and_bad_arguments_are_refused(self):
        with pytest.raises(ValueError, match="`episodes` has `seed=None`"):
            AdaptationCurve(waves(None))
        with pytest.raises(ValueError, match="`every` must be an integer of at least 1"):
            AdaptationCurve(waves(1), every=0)
        with pytest.raises(ValueError, match="`steps` must be numbers of inner steps"):
            AdaptationCurve(waves(1), steps=-1)
        short = AdaptationCurve(waves(FIXED(8)), tasks=9)
        with pytest.raises(ValueError, match="gave 8 tasks, and tasks=9 were asked for"):  # before any step
            compiled().fit(waves(), steps_per_epoch=10**9, verbose=0, callbacks=[short])


def some_bad(bad_of_batch):
    """Batches of 4 tasks, of which some have numbers whose squares overflow."""

    def generate():
        for batch, (x, y) in enumerate(waves().as_numpy_iterator()):
            support_y = x["support_y"].copy()
            support_y[: bad_of_batch(batch)] = 1e30
            yield {**x, "support_y": support_y}, y

    return tf.data.Dataset.from_generator(generate, output_signature=waves().element_spec)


class TestLearnedRates:
    def fitted(self, rule, steps=1, callbacks=(), **algorithm):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1, name="b")])
        algorithm = keras_maml.Algorithm(rule, keras_maml.meta_gradients.FirstOrder(), steps, **algorithm)
        meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
        meta_model.compile(keras.optimizers.SGD(1e-3), "mse")
        callbacks = [*callbacks, LearnedRates()]
        history = meta_model.fit(waves(), steps_per_epoch=1, epochs=2, verbose=0, callbacks=callbacks).history
        return meta_model, history

    def test_rates_as_steps_use_them(self):
        recorder = Recorder()
        rule = keras_maml.learning_rules.LearnedSGD(0.1, positive=True)
        meta_model, history = self.fitted(rule, callbacks=[recorder])
        rates = {f"{v.path.partition('/')[2]}": np.log1p(np.exp(r.numpy())) for v, r in
                 zip(meta_model.model.trainable_variables, meta_model.rule.rates, strict=True)}
        assert list(rates) == ["a/kernel", "a/bias", "b/kernel", "b/bias"]
        for path, values in rates.items():
            for key in ("mean", "min", "max"):
                name = f"rate/{path}/{key}"
                np.testing.assert_allclose(history[name][-1], getattr(values, key)(), rtol=1e-6)
                assert recorder.logs[1][name] == history[name][1]
        assert history["rate/a/kernel/min"][0] != history["rate/a/kernel/min"][1]

    def test_of_what_adapts_and_by_step(self):
        meta_model, history = self.fitted(keras_maml.learning_rules.LayerwiseSGD(0.1), 3, layers="b")
        assert sorted(name for name in history if name.startswith("rate/")) == [
            f"rate/b/{weight}/{key}" for weight in ("bias", "kernel") for key in ("max", "mean", "min")
        ]
        np.testing.assert_allclose(history["rate/b/kernel/max"][-1], meta_model.rule.rates[0].numpy().max())

    def test_of_other_rules(self, tmp_path):
        log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
        meta_model, history = self.fitted(keras_maml.learning_rules.ALFA(0.1, seed=0), callbacks=[log])
        np.testing.assert_allclose(history["rule/keeps/mean"][-1], meta_model.rule.keeps.numpy().mean(), rtol=1e-6)
        assert "rule/hidden_kernel/min" in (tmp_path / "log.csv").read_text().splitlines()[0].split(",")

    def test_weights_of_one_path_are_told_apart(self):
        inputs = x = keras.Input((1,))
        for _ in range(3):
            x = keras.Model(inputs, keras.layers.Dense(1, name="d")(inputs))(x)
        model = keras.Model(inputs, x)
        meta_model = keras_maml.MetaModel(model, keras_maml.MetaSGD(0.1), "parallel")
        callback = LearnedRates()
        callback.set_model(meta_model)
        logs = {}
        callback.on_epoch_end(0, logs)
        assert [name for name in logs if name.endswith("kernel/mean") or "kernel_" in name and "mean" in name] == [
            f"rate/d/{name}/mean" for name in ("kernel", "kernel_1", "kernel_2")
        ]

    def test_a_rule_that_learns_nothing(self):
        with pytest.raises(ValueError, match="`LearnedRates` has nothing to log: `SGD` learns no weights"):
            compiled().fit(waves(), steps_per_epoch=1, verbose=0, callbacks=[LearnedRates()])


class TestNonFiniteTasks:
    @pytest.mark.parametrize("share, batches", [(0.2, 3), (0.3, 8)])
    def test_stops_above_a_share(self, share, batches):
        meta_model, recorder = compiled(skip_non_finite=True), Recorder()
        seen = []
        count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
        arguments = {"steps_per_epoch": 8, "epochs": 1, "verbose": 0}
        callbacks = [NonFiniteTasks(share, tasks=12), count, recorder]
        data = some_bad(lambda batch: 1)  # a quarter of all tasks
        if share < 0.25:
            with pytest.warns(UserWarning, match="3 of 12 tasks .25 %. had a loss or gradient"):
                meta_model.fit(data, callbacks=callbacks, **arguments)
        else:
            meta_model.fit(data, callbacks=callbacks, **arguments)
        assert len(seen) == batches
        assert recorder.logs[0]["non_finite_tasks"] == batches
        assert all(np.isfinite(weight).all() for weight in meta_model.weights)

    def test_few_tasks_are_judged_at_the_end_of_the_epoch(self):
        meta_model = compiled(skip_non_finite=True)
        with pytest.warns(UserWarning, match="2 of 8 tasks"):
            history = meta_model.fit(
                some_bad(lambda batch: 1), steps_per_epoch=2, epochs=3, verbose=0, callbacks=[NonFiniteTasks(0.1)]
            )
        assert len(history.epoch) == 1

    def test_the_share_is_that_of_an_epoch(self):
        # All tasks of the first batch of each epoch but the first are bad, a fifth of an epoch.
        data = some_bad(lambda batch: 4 if batch and batch % 5 == 0 else 0)
        callback = NonFiniteTasks(0.21, tasks=20)
        history = compiled(skip_non_finite=True).fit(
            data, steps_per_epoch=5, epochs=3, verbose=0, callbacks=[callback]
        )
        assert history.history["non_finite_tasks"] == [0, 4, 4]

    def test_validation_counts_by_itself(self):
        """Validation, which counts anew, runs before the logs of training are read."""
        x, y = next(iter(some_bad(lambda batch: 4)))
        bad = tf.data.Dataset.from_tensors((x, y)).repeat(2)
        meta_model = compiled(skip_non_finite=True)
        arguments = {"steps_per_epoch": 5, "epochs": 1, "verbose": 0, "callbacks": [NonFiniteTasks(0.5)]}
        history = meta_model.fit(some_bad(lambda batch: 1), validation_data=bad, **arguments).history
        assert history["non_finite_tasks"] == [5] and history["val_non_finite_tasks"] == [8]
        assert np.isnan(history["val_loss"]) and np.isfinite(history["loss"])
        assert not meta_model.stop_training

    def test_without_skipping_it_stops_at_the_first(self):
        meta_model = compiled()
        with pytest.warns(UserWarning, match="after batch 2 of the epoch.*skip_non_finite=True"):
            meta_model.fit(
                some_bad(lambda batch: int(batch == 2)), steps_per_epoch=9, epochs=2, verbose=0,
                callbacks=[NonFiniteTasks()],
            )
        assert int(meta_model.outer_step) == 3

    @pytest.mark.parametrize("arguments", [{"share": 1.0}, {"share": -0.1}, {"share": True}, {"tasks": 0}])
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError, match="Received"):
            NonFiniteTasks(**arguments)
