"""Memory of a step does not grow with what it need not keep: gradients of tasks, inner steps.

A process runs with little first, then with much, and what its peak rises by is compared.
"""

import subprocess
import sys

import pytest

# Not `ru_maxrss`: a process inherits that from the one that started it, and a long test run is larger than these.
PEAK = """
def peak():
    # Of resident memory so far, in MB.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024
"""

# `python -c WORKER mapping tasks...` prints the peak of resident memory in MB after two meta-steps, for each number of
# tasks in turn, of a model of 2 million weights, 8 MB. Its hidden units are 1000: activations of 2 examples are nothing
# beside that.
WORKER = PEAK + """
import sys
import keras, numpy as np, tensorflow as tf
import keras_maml

mapping = {"parallel": keras_maml.task_mapping.Parallel(2), "stacked": keras_maml.task_mapping.Vectorized(False, 64)}
inputs = keras.Input((1000,))
hidden = keras.layers.Dense(1000, "tanh", use_bias=False)(inputs)
hidden = keras.layers.Dense(1000, "tanh", use_bias=False)(hidden)
model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.01, 1), mapping[sys.argv[1]])
meta_model.compile("sgd", "mse")
for tasks in map(int, sys.argv[2:]):
    x, y = np.ones((tasks, 2, 1000), "float32"), np.ones((tasks, 2, 1), "float32")
    for _ in range(2):
        meta_model.train_on_batch({"support_x": x, "support_y": y, "query_x": x}, y)
    print(peak())
"""


def printed(code, counts):
    """The numbers that `python -c code name counts...` prints, one for each count, by `(name, count)`."""
    numbers = {}
    for name, values in counts.items():
        command = [sys.executable, "-c", code, name, *map(str, values)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        numbers.update({(name, n): float(line) for n, line in zip(values, done.stdout.split(), strict=True)})
    return numbers


@pytest.fixture(scope="module")
def megabytes():
    """Peaks by mapping and number of tasks."""
    return printed(WORKER, {"parallel": (4, 64), "stacked": (4, 64)})


def test_memory_does_not_grow_with_tasks(megabytes):
    # 60 more gradients of 8 MB would be 480 MB. What may grow is x, 0.5 MB, and what the allocator keeps: less than a
    # third of that.
    assert megabytes["parallel", 64] - megabytes["parallel", 4] < 160


def test_the_measure_sees_gradients_that_are_stacked(megabytes):
    assert megabytes["stacked", 64] - megabytes["stacked", 4] > 480


# `python -c STEPS mode steps...` prints the peak of resident memory in MB after two meta-steps or evaluations of a
# task, for each number of steps in turn. A hidden layer of 500 units on 2000 supports: 4 MB for each tensor of
# activations, 1 MB of weights.
STEPS = PEAK + """
import sys
import keras, numpy as np
import keras_maml
from keras_maml.meta_gradients import Unrolled

mode = sys.argv[1]
estimator = Unrolled(rematerialize=mode == "rematerialised")
inputs = keras.Input((500,))
model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(500, "tanh", use_bias=False)(inputs)))
rule = keras_maml.learning_rules.SGD(1e-5)
x, y = np.ones((1, 2000, 500), "float32"), np.ones((1, 2000, 1), "float32")
x = {"support_x": x, "support_y": y, "query_x": x[:, :2]}
for steps in map(int, sys.argv[2:]):
    meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(rule, estimator, steps), "parallel")
    meta_model.compile("sgd", "mse")
    if mode == "evaluation":  # in a graph, then eagerly
        meta_model.test_on_batch(x, y[:, :2])
        meta_model.adapt(x["support_x"][0], y[0])
    else:
        for _ in range(2):
            meta_model.train_on_batch(x, y[:, :2])
    print(peak())
"""


@pytest.fixture(scope="module")
def highest():
    """Peaks by mode and number of steps."""
    counts = {"evaluation": (1, 100), "rematerialised": (1, 10), "kept": (1, 10)}
    return printed(STEPS, counts)


def test_memory_of_an_evaluation_does_not_grow_with_steps(highest):
    # 99 more steps keep nothing: of the 4 MB of their hidden activations, nor of 1 MB of weights. The bound is for what
    # the allocator keeps, and the code of the loop.
    assert highest["evaluation", 100] - highest["evaluation", 1] < 40


def test_memory_of_recomputed_steps_grows_by_their_weights(highest):
    # Nine more steps of 1 MB of weights each; a step that is kept costs two activations of 4 MB at the least. Up to as
    # much again as the weights for the zeros that the history starts from, and what the allocator keeps.
    assert highest["rematerialised", 10] - highest["rematerialised", 1] < 9 * 2 + 22


def test_the_measure_sees_steps_that_are_kept(highest):
    assert highest["kept", 10] - highest["kept", 1] > 9 * 2 * 4
