"""Runs that go on where they were stopped.

Batch number n of the episodes here holds n itself, so that what a run has learned from can be read off.
"""

import json
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import episodes, resuming


def numbered(batches=None, start=0):
    """Episodes of one task, whose supports and queries are all the number of the episode."""

    def episode(seed, index):
        x = tf.cast(index, tf.float32)[:, None, None]
        return {"support_x": x, "support_y": x, "query_x": x}, x

    return episodes.from_function(episode, tasks=1, seed=0, batches=batches, start=start)


class Recorder(keras_maml.MetaModel):
    """A MetaModel that lists the batches it learns from."""

    def train_step(self, data):
        tf.py_function(lambda number: self.seen.append(int(number)), [data[0]["support_x"][0, 0, 0]], [])
        return super().train_step(data)


class Interruption(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        if len(self.model.seen) >= self.after:
            raise Interruption


def recorder(steps_per_execution=1, outer_step=0):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    meta_model = Recorder(model, keras_maml.FOMAML(1e-4, 1), "parallel")
    meta_model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    meta_model.outer_step.assign(outer_step)
    return meta_model


def batches_seen(meta_model, data, folder, interrupt=None, save_freq="epoch", **kwargs):
    """What one run learns from, with a backup in `folder`; it stops after `interrupt` batches, if not `None`."""
    meta_model.seen = []
    backup = keras.callbacks.BackupAndRestore(folder, save_freq, delete_checkpoint=kwargs.pop("delete", True))
    stop = [] if interrupt is None else [Interrupt(interrupt)]
    try:
        meta_model.fit(data, callbacks=[backup, *stop], verbose=0, **kwargs)
        assert interrupt is None
    except Interruption:
        pass
    return meta_model.seen


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_infinite_episodes_go_on(tmp_path, steps_per_execution):
    # Two batches an epoch are backed up; the fifth and sixth are lost with the run, and come again.
    arguments = {"folder": tmp_path, "epochs": 4, "steps_per_epoch": 4}
    first = batches_seen(recorder(steps_per_execution), numbered(), interrupt=6, **arguments)
    second = batches_seen(recorder(steps_per_execution), numbered(), **arguments)
    assert first == list(range(6))
    assert second == list(range(4, 16))


def test_infinite_episodes_go_on_within_an_epoch(tmp_path):
    # Backed up after batches 3 and 6. Keras runs the epoch that was interrupted, the second, in full: 3 epochs of 4.
    arguments = {"folder": tmp_path, "save_freq": 3, "epochs": 4, "steps_per_epoch": 4}
    first = batches_seen(recorder(), numbered(), interrupt=7, **arguments)
    second = batches_seen(recorder(), numbered(), **arguments)
    assert first == list(range(7))
    assert second == list(range(6, 18))


def test_finite_episodes_go_on(tmp_path):
    arguments = {"folder": tmp_path, "epochs": 3}
    first = batches_seen(recorder(), numbered(batches=4), interrupt=6, **arguments)
    second = batches_seen(recorder(), numbered(batches=4), **arguments)
    assert first == [0, 1, 2, 3, 0, 1]
    assert second == [0, 1, 2, 3] * 2


def test_finite_episodes_go_round(tmp_path, recwarn):
    # Within an epoch: after batch 6 of 4 + 4 the next is number 2, and an epoch has 4 batches still.
    arguments = {"folder": tmp_path, "save_freq": 3, "epochs": 3}
    batches_seen(recorder(), numbered(batches=4), interrupt=7, **arguments)
    assert batches_seen(recorder(), numbered(batches=4), **arguments) == [2, 3, 0, 1] * 2
    assert not [w for w in recwarn if "ran out of data" in str(w.message)]


def test_finite_episodes_in_epochs_of_other_length(tmp_path, recwarn):
    # Two epochs of 3 for each pass over 6; stopped in the fourth epoch, after 9 batches.
    arguments = {"folder": tmp_path, "epochs": 6, "steps_per_epoch": 3}
    batches_seen(recorder(), numbered(batches=6), interrupt=10, **arguments)
    assert batches_seen(recorder(), numbered(batches=6), **arguments) == [3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert not [w for w in recwarn if "ran out of data" in str(w.message)]


def test_episodes_of_unknown_number_go_on(tmp_path):
    data = numbered(batches=20).filter(lambda *_: True)
    assert data.cardinality() == tf.data.UNKNOWN_CARDINALITY
    arguments = {"folder": tmp_path, "epochs": 3, "steps_per_epoch": 4}
    batches_seen(recorder(), data, interrupt=6, **arguments)
    assert batches_seen(recorder(), data, **arguments) == list(range(4, 12))


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_episodes_of_unknown_number_end(tmp_path):
    # Six batches in epochs of 2: where they end, Keras makes an epoch of none and begins anew. Then nothing is skipped.
    data = numbered(batches=6).filter(lambda *_: True)
    arguments = {"folder": tmp_path, "epochs": 6, "steps_per_epoch": 2}
    batches_seen(recorder(), data, interrupt=5, **arguments)
    assert batches_seen(recorder(), data, **arguments)[:4] == [4, 5, 0, 1]


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_whole_passes_of_unknown_length_go_on(tmp_path):
    data = numbered(batches=4).filter(lambda *_: True)
    batches_seen(recorder(), data, tmp_path, interrupt=6, epochs=3)
    assert batches_seen(recorder(), data, tmp_path, epochs=3) == [0, 1, 2, 3] * 2


def test_the_same_object_goes_on(tmp_path):
    # As in a notebook: the counter of batches stands at 6 when `fit` is called anew, and is put back to 4.
    meta_model, arguments = recorder(), {"folder": tmp_path, "epochs": 4, "steps_per_epoch": 4}
    batches_seen(meta_model, numbered(), interrupt=6, **arguments)
    assert batches_seen(meta_model, numbered(), **arguments) == list(range(4, 16))


def test_a_finished_run_goes_on_for_more_epochs(tmp_path):
    meta_model, arguments = recorder(), {"folder": tmp_path, "steps_per_epoch": 3, "delete": False}
    assert batches_seen(meta_model, numbered(), epochs=2, **arguments) == list(range(6))
    assert batches_seen(meta_model, numbered(), epochs=3, **arguments) == [6, 7, 8]
    assert batches_seen(recorder(), numbered(), epochs=4, **arguments) == [9, 10, 11]


def test_a_new_run_begins_at_the_beginning(tmp_path):
    meta_model = recorder()
    for _ in range(2):  # the backup of the first is gone when it ends
        assert batches_seen(meta_model, numbered(), tmp_path, epochs=2, steps_per_epoch=2) == [0, 1, 2, 3]


def test_training_before_the_run_does_not_count(tmp_path):
    arguments = {"folder": tmp_path, "epochs": 2, "steps_per_epoch": 4}
    batches_seen(recorder(outer_step=100), numbered(), interrupt=6, **arguments)
    assert batches_seen(recorder(outer_step=100), numbered(), **arguments) == [4, 5, 6, 7]


def test_without_backup_nothing_is_changed(tmp_path):
    stop = keras.callbacks.TerminateOnNaN()
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    arrays = np.ones((3, 1))
    for data, listed in ((numbered(), None), (numbered(), stop), (numbered(), [stop]), (arrays, backup)):
        arguments = {"x": data, "callbacks": listed}
        resuming.resume_episodes(recorder(), arguments, {})
        assert arguments["x"] is data
        assert arguments["callbacks"] is listed


def test_options_of_the_dataset_are_kept(tmp_path):
    options = tf.data.Options()
    options.threading.private_threadpool_size = 3
    arguments = {"x": numbered().with_options(options), "callbacks": keras.callbacks.BackupAndRestore(tmp_path)}
    resuming.resume_episodes(recorder(), arguments, {})
    found = arguments["x"].options()
    assert found.threading.private_threadpool_size == 3
    assert found.autotune.enabled is False


# ------------------------------------------------------------------------------------------------- a process is killed

# `python -c TRAIN folder save_freq batches` trains, and is killed after so many batches; -1 stands for the process that
# goes on with both runs. Adam, dropout and moving moments each have a state of their own.
TRAIN = """
import json, os, signal, sys
import keras, numpy as np, tensorflow as tf
import keras_maml

class Writer(keras_maml.MetaModel):
    def train_step(self, data):
        def write(x):
            with open(self.file, "a") as file:
                file.write(json.dumps(float(x)) + "\\n")
        tf.py_function(write, [data[0]["support_x"][0, 0, 0]], [])
        return super().train_step(data)

class Kill(keras.callbacks.Callback):
    left = int(sys.argv[3])
    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def run(folder, save_freq):
    keras.utils.set_random_seed(1)
    layers = keras.layers.Dense(8, "tanh"), keras_maml.layers.BatchNormalization("moving"), keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((1,)), *layers, keras.layers.Dense(1)])
    meta_model = Writer(model, keras_maml.FOMAML(0.01, 1), "parallel")
    meta_model.compile("adam", "mse")
    meta_model.file = folder + ".txt"
    backup = [keras.callbacks.BackupAndRestore(folder, save_freq)] if folder != "whole" else []
    train = keras_maml.datasets.sinusoid(shots=4, queries=4, tasks=2, seed=0)
    meta_model.fit(train, epochs=4, steps_per_epoch=5, callbacks=[*backup, Kill()], verbose=0)
    return {str(i): v.numpy() for i, v in enumerate([*meta_model.variables, *meta_model.optimizer.variables])}

if Kill.left > 0:
    run(sys.argv[1], "epoch" if sys.argv[2] == "epoch" else int(sys.argv[2]))
else:
    for name, save_freq in (("whole", None), ("by_epoch", "epoch"), ("by_batch", 3)):
        np.savez(name + ".npz", **run(name, save_freq))
"""


def start(folder, *arguments):
    return subprocess.Popen([sys.executable, "-c", TRAIN, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Two runs that were killed after 13 batches, and then, in another process, went on; and one that was left alone.

    Returns:
        `(seen, weights)`: the first support of every batch, and the weights at the end, of `"whole"`, `"by_epoch"` and
        `"by_batch"`.
    """
    folder = tmp_path_factory.mktemp("killed")
    victims = [start(folder, "by_epoch", "epoch", "13"), start(folder, "by_batch", "3", "13")]
    for victim in victims:
        _, errors = victim.communicate()
        assert victim.returncode == -signal.SIGKILL, errors[-3000:]
    last = start(folder, "", "", "-1")
    _, errors = last.communicate()
    assert last.returncode == 0, errors[-3000:]
    names = "whole", "by_epoch", "by_batch"
    seen = {name: [json.loads(line) for line in (folder / f"{name}.txt").read_text().splitlines()] for name in names}
    return seen, {name: dict(np.load(folder / f"{name}.npz")) for name in names}


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(killed):
    seen, weights = killed
    # Backed up after 10 batches, killed after 13.
    assert seen["by_epoch"] == seen["whole"][:13] + seen["whole"][10:]
    assert len(seen["whole"]) == len(set(seen["whole"])) == 20
    assert len(weights["whole"]) > 20
    for name, value in weights["whole"].items():
        np.testing.assert_allclose(weights["by_epoch"][name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_run_killed_within_an_epoch_repeats_no_episode(killed):
    # Backed up after 12 batches, killed after 13. Keras runs the third epoch anew: 10 batches more.
    seen, _ = killed
    data = keras_maml.datasets.sinusoid(shots=4, queries=4, tasks=2, seed=0, batches=22)
    expected = [float(x["support_x"][0, 0, 0]) for x, _ in data]
    assert seen["by_batch"] == expected[:13] + expected[12:]
