"""Threads, each case in a process of its own: TensorFlow reads their numbers once."""

import json
import os
import subprocess
import sys

import pytest

import keras_maml
from keras_maml import threads

CASE = """
import json, sys
import keras, tensorflow as tf
import keras_maml

def numbers():
    threading = tf.config.threading
    return [threading.get_inter_op_parallelism_threads(), threading.get_intra_op_parallelism_threads()]

result = []
for before, tasks, cores in json.loads(sys.argv[1]):
    if before == "start":
        tf.constant(1) + 1
    if before == "seed":
        keras.utils.set_random_seed(0)
    try:
        keras_maml.set_threads(tasks, cores)
    except RuntimeError as error:
        result.append(str(error))
    else:
        result.append(numbers())
print(json.dumps(result))
"""


def run(*calls):
    """What follows each call of `set_threads`: `[inter-op, intra-op]`, or the error."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", CASE, json.dumps(calls)], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout)


def test_before_tensorflow_starts_and_after():
    results = run(
        ["seed", 32, 4],  # as many tasks as cores or more: a thread each. A seed starts nothing
        ["", 4, 4],
        ["", 3, 4],  # fewer: TensorFlow's own choice, in which an operation has all threads
        ["", 1, 4],
        ["", 1, 1],
        ["", 8, 4],
        ["start", 4, 4],  # too late, and the same numbers
        ["", 1, 4],  # too late
    )
    assert results[:-1] == [[4, 1], [4, 1], [4, 4], [4, 4], [1, 1], [4, 1], [4, 1]]
    assert "TensorFlow has started already, with 4 inter-op and 1 intra-op threads" in results[-1]
    assert "cannot change to 4 and 4. Call `keras_maml.set_threads` right after the imports" in results[-1]


def test_started_with_the_default():
    cores = threads.available_cores()
    same, other = run(["start", 1, cores], ["", cores + 1, cores + 1])
    # The default is a thread for each core, which TensorFlow says as 0.
    assert same == [0, 0]
    assert "with default (one for each core) inter-op and default (one for each core) intra-op threads" in other


def test_cores_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert threads.available_cores() == 3
    assert keras_maml.task_mapping.Parallel().describe("graph") == "3 tasks at a time"
    monkeypatch.delattr(os, "sched_getaffinity")
    assert threads.available_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.available_cores() == 1


@pytest.mark.parametrize("name", ["tasks", "cores"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1. Received: {name}={value!r}"):
        keras_maml.set_threads(**{"tasks": 1, "cores": 1, name: value})
