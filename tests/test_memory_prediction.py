"""Memory of a step as its graph tells it: by hand for small graphs, measured for a step of 10 MB an inner step."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.liveness import Simulation
from keras_maml.memory import predict_memory
from keras_maml.meta_gradients import Unrolled
from keras_maml.task_mapping import Parallel, Vectorized

N = 100 * 100 * 4  # bytes of a matrix
MATRIX = tf.TensorSpec((100, 100), tf.float32)


def peak(function, *specs):
    """In matrices, above the inputs; scalars and indices are next to nothing."""
    graph = tf.function(function, autograph=False).get_concrete_function(*(specs or [MATRIX])).graph
    return Simulation(graph).peak / N


def test_results_are_freed_after_their_last_reader():
    # Of a chain of products two live at a time.
    assert peak(lambda x: (((x @ x) @ x) @ x) @ x) == 2


def test_element_wise_operations_write_in_place():
    assert peak(lambda x: tf.tanh(tf.exp(x @ x))) == 1


def test_what_is_read_again_is_not_written_over():
    def function(x):
        product = x @ x
        return product @ tf.tanh(product)

    assert peak(function) == 3  # the product, its tanh, the result


def test_views_take_nothing():
    assert peak(lambda x: tf.reshape(tf.expand_dims(x @ x, 0), [-1])) == pytest.approx(1, abs=0.01)


def test_what_nobody_needs_is_not_computed():
    def function(x):
        tf.exp(x @ x) @ x
        return x @ x

    assert peak(function) == 1


def loop(body, *values, **options):
    return tf.while_loop(lambda i, *_: i < 7, lambda i, *v: (i + 1, *body(i, *v)), (0, *values), **options)[1:]


def test_iterations_that_wait_for_each_other_take_as_much_as_one():
    # What is carried and what replaces it.
    assert peak(lambda x: loop(lambda _, v: (v @ v,), x, parallel_iterations=10)) == pytest.approx(2, abs=0.01)


def test_iterations_that_only_add_up_run_at_the_same_time():
    # The sum, and of three iterations at a time the two matrices of a product of two.
    def function(x):
        return loop(lambda _, total: (total + (x @ x) @ x,), tf.zeros_like(x), parallel_iterations=3)

    assert peak(function) == pytest.approx(1 + 3 * 2, abs=0.01)


def test_not_more_iterations_than_rows_of_the_list():
    def function(x):
        rows = tf.TensorArray(tf.float32, 2, element_shape=(100, 100))
        values = rows, tf.zeros_like(x)
        rows, total = loop(lambda i, r, t: (r.write(i, x @ x), t + x @ x), *values, parallel_iterations=9)
        return rows.stack(), total

    # The list of two and the sum; two iterations of two products each; less than that when the list is stacked.
    assert peak(function) == pytest.approx(2 + 1 + 2 * 2, abs=0.01)


def test_the_gradient_of_a_loop_keeps_what_every_iteration_made():
    def function(x):
        def last(v):
            return loop(lambda _, w: (tf.tanh(w @ x),), v, maximum_iterations=iterations)[0]

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(last(x))
        return tape.gradient(value, x)

    peaks = {}
    for iterations in (5, 10, 15):
        peaks[iterations] = peak(function)
    # Each keeps the matrix that it multiplies and its tanh, each in a list.
    assert peaks[10] - peaks[5] == pytest.approx(10, abs=0.1)
    assert peaks[15] - peaks[10] == pytest.approx(10, abs=0.1)


WIDTH, SUPPORTS = 500, 2000
ACTIVATIONS = SUPPORTS * WIDTH * 4
WEIGHTS = (WIDTH * WIDTH + WIDTH + 1) * 4


def make(steps=1, rematerialize=False, mapping="parallel", optimizer="sgd", tasks=1, supports=SUPPORTS, layers=()):
    inputs = keras.Input((WIDTH,))
    hidden = keras.layers.Dense(WIDTH, "tanh", use_bias=False)(inputs)
    for layer in layers:
        hidden = layer(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    rule = keras_maml.learning_rules.SGD(1e-5)
    algorithm = keras_maml.Algorithm(rule, Unrolled(rematerialize=rematerialize), steps)
    meta_model = keras_maml.MetaModel(model, algorithm, mapping)
    meta_model.compile(optimizer, "mse")
    x, y = np.ones((tasks, supports, WIDTH), "float32"), np.ones((tasks, supports, 1), "float32")
    return meta_model, {"support_x": x, "support_y": y, "query_x": x[:, :2]}, y[:, :2]


def test_steps_that_are_kept_take_their_activations():
    # The tanh of the supports and what its second derivative needs of the inner gradient, at least; at most five.
    step = predict_memory(*make(steps=2)).per_step_bytes
    assert 2 * ACTIVATIONS < step < 5 * ACTIVATIONS


def test_steps_that_are_made_again_take_their_weights():
    assert predict_memory(*make(steps=2, rematerialize=True)).per_step_bytes == pytest.approx(WEIGHTS, rel=0.05)


def test_steps_of_a_loop_are_compared_with_steps_of_a_loop():
    # The eleventh step is made in a loop: a prediction across that border would be negative.
    kept, looped = (predict_memory(*make(steps=k, supports=100)).per_step_bytes for k in (10, 11))
    assert looped == pytest.approx(WEIGHTS, rel=0.05)
    assert kept > WEIGHTS


def test_a_task_of_parallel_takes_its_data():
    # 20 supports and 2 queries, labels too; predictions and the loss, in a list and stacked.
    prediction = predict_memory(*make(tasks=5, supports=20, mapping=Parallel(2)))
    data = (20 + 2) * (WIDTH + 1) * 4
    assert prediction.per_task_bytes == pytest.approx(data, abs=100)
    assert "2 tasks at a time" in prediction.mapping


def test_a_second_core_takes_a_whole_task():
    alone, together = (predict_memory(*make(tasks=1, mapping=Parallel(n))).per_task_bytes for n in (1, 2))
    assert together - alone > 3 * ACTIVATIONS


@pytest.mark.parametrize("xla", (True, False))
def test_a_vectorised_task_takes_its_gradients(xla):
    # Adapted weights and their outer gradient, at least; the inner gradient may become the adapted weights.
    task = predict_memory(*make(tasks=4, supports=2, mapping=Vectorized(xla, 64))).per_task_bytes
    assert 2 * WEIGHTS < task < 6 * WEIGHTS
    # Of two chunks of four the ninth makes three of three, which take less.
    chunked = predict_memory(*make(tasks=8, supports=2, mapping=Vectorized(xla, 4))).per_task_bytes
    assert chunked == (2 + 2) * (WIDTH + 1) * 4


def test_weights_count_with_those_of_the_optimizer():
    # Adam has two slots for each; and a few scalars: counters, the learning rate, metrics.
    prediction = predict_memory(*make(supports=2, optimizer="adam"))
    assert 0 < prediction.weights_bytes - 3 * WEIGHTS < 200
    assert prediction.peak_bytes > prediction.weights_bytes


class Counting(keras.layers.Layer):
    """Counts how often it is run."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.runs = []

    def call(self, x):
        count = tf.numpy_function(lambda: self.runs.append(1) or np.float32(0), [], tf.float32)
        return x + tf.ensure_shape(count, ())


def test_nothing_is_run_or_changed():
    layer = Counting()
    meta_model, x, y = make(supports=2, layers=[layer])
    before = [v.numpy() for v in meta_model.variables]
    predict_memory(meta_model, x, y)
    assert not layer.runs
    for old, variable in zip(before, meta_model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    meta_model.train_on_batch(x, y)
    assert layer.runs  # the layer is seen when it runs


def test_weights_of_examples_and_reading_it():
    meta_model, x, y = make(supports=2)
    prediction = predict_memory(meta_model, {**x, "support_weight": np.ones((1, 2))}, y, np.ones((1, 2), "float32"))
    assert "each further inner step" in str(prediction)
    assert meta_model.explain_task_mapping() in str(prediction)


def test_refusals():
    meta_model, x, y = make(supports=2)
    with pytest.raises(ValueError, match="no task"):
        predict_memory(meta_model, {name: value[:0] for name, value in x.items()}, y[:0])
    bare = keras_maml.MetaModel(meta_model.model)
    with pytest.raises(ValueError, match="not compiled"):
        predict_memory(bare, x, y)


# `python -c MEASURE steps` prints by how many bytes two meta-steps raise the peak of resident memory.
MEASURE = """
import sys
from tests.test_memory_prediction import make

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024

meta_model, x, y = make(steps=int(sys.argv[1]))
before = peak()
for _ in range(2):
    meta_model.train_on_batch(x, y)
print(peak() - before)
"""


def test_prediction_agrees_with_processes_of_their_own():
    processes = [
        subprocess.Popen([sys.executable, "-c", MEASURE, str(steps)], stdout=subprocess.PIPE, text=True)
        for steps in (1, 5)
    ]
    low, high = (float(process.communicate()[0].splitlines()[-1]) for process in processes)
    predicted = predict_memory(*make(steps=1)).per_step_bytes
    assert predicted == pytest.approx((high - low) / 4, rel=0.25)
