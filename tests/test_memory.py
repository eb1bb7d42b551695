"""Memory of a meta-step does not grow with the number of tasks: gradients are summed as they come, not stacked."""

import subprocess
import sys

import pytest

# `python -c WORKER mapping tasks` prints the peak of resident memory in MB after two meta-steps of a model of 2 million
# weights, 8 MB. Its hidden units are 1000: activations of 2 examples are nothing beside that.
WORKER = """
import resource, sys
import keras, numpy as np, tensorflow as tf
import keras_maml

mapping = {"parallel": keras_maml.task_mapping.Parallel(2), "stacked": keras_maml.task_mapping.Vectorized(False)}
tasks = int(sys.argv[2])
inputs = keras.Input((1000,))
hidden = keras.layers.Dense(1000, "tanh", use_bias=False)(inputs)
hidden = keras.layers.Dense(1000, "tanh", use_bias=False)(hidden)
model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.01, 1), mapping[sys.argv[1]])
meta_model.compile("sgd", "mse")
x, y = np.ones((tasks, 2, 1000), "float32"), np.ones((tasks, 2, 1), "float32")
for _ in range(2):
    meta_model.train_on_batch({"support_x": x, "support_y": y, "query_x": x}, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # Linux counts in KB
"""


@pytest.fixture(scope="module")
def megabytes():
    """Peaks by mapping and number of tasks, a process for each; two processes at a time."""
    peaks = {}
    for mapping in ("parallel", "stacked"):
        command = [sys.executable, "-c", WORKER, mapping]
        started = {n: subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in (4, 64)}
        for tasks, process in started.items():
            output, _ = process.communicate()
            assert process.returncode == 0
            peaks[mapping, tasks] = float(output)
    return peaks


def test_memory_does_not_grow_with_tasks(megabytes):
    # 60 more gradients of 8 MB would be 480 MB. What may grow is x, 0.5 MB, and what the allocator keeps: less than a
    # third of that.
    assert megabytes["parallel", 64] - megabytes["parallel", 4] < 160


def test_the_measure_sees_gradients_that_are_stacked(megabytes):
    assert megabytes["stacked", 64] - megabytes["stacked", 4] > 480
