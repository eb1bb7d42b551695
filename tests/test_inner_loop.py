"""Steps repeated: unrolled, in a loop, in a loop with its own gradient, on functions that need no model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.inner_loop import MOST_UNROLLED_STEPS, repeat, replace

WAYS = {
    "unrolled": {"last": 3},
    "rematerialised": {"last": 3, "rematerialize": True},
    "loop": {"last": MOST_UNROLLED_STEPS + 2},
}


def geometric(constants, carry, index):
    """`x <- a x`, and a counter that has no gradient."""
    x, count = carry
    return constants["a"] * x, count + tf.cast(index, tf.int32)


def run(a, x, first=0, **arguments):
    return repeat(geometric, {"a": a, "name": None}, (x, tf.constant(0)), first, **arguments)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_geometric_sequence(way, graph):
    arguments, a, x = WAYS[way], tf.constant(1.1), tf.constant(2.0)
    steps = arguments["last"]

    def gradients(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            value, count = run(a, x, **arguments)
        return value, count, tape.gradient(value, [a, x])

    value, count, (to_a, to_x) = (tf.function(gradients) if graph else gradients)(a, x)
    # x_K = a^K x, so d/da = K a^(K-1) x and d/dx = a^K; the counter is 0 + 1 + ... + K - 1.
    np.testing.assert_allclose(value, 1.1**steps * 2, rtol=1e-5)
    np.testing.assert_allclose(to_a, steps * 1.1 ** (steps - 1) * 2, rtol=1e-5)
    np.testing.assert_allclose(to_x, 1.1**steps, rtol=1e-5)
    assert count == steps * (steps - 1) // 2


@pytest.mark.parametrize("last", [5, MOST_UNROLLED_STEPS + 5])
def test_steps_count_from_the_first(last):
    _, count = run(tf.constant(1.0), tf.constant(1.0), first=3, last=last)
    assert count == sum(range(3, last))


def test_no_step():
    value, count = run(tf.constant(3.0), tf.constant(2.0), last=0, rematerialize=True)
    assert value == 2 and count == 0


def test_a_loop_that_keeps_nothing_gives_the_same_value():
    last = MOST_UNROLLED_STEPS + 3
    value, _ = run(tf.constant(1.1), tf.constant(2.0), last=last, differentiable=False)
    np.testing.assert_allclose(value, 1.1**last * 2, rtol=1e-5)


def test_a_changing_structure_is_refused():
    def growing(constants, carry, index):
        return [*carry, carry[0]]

    with pytest.raises(ValueError, match="must return a state structured as the one that `init` returns"):
        repeat(growing, {}, [tf.constant(1.0)], 0, MOST_UNROLLED_STEPS + 1)


def test_variables_that_a_step_reads_of_itself():
    scale = tf.Variable(2.0)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = repeat(lambda constants, carry, index: [scale * carry[0]], {}, [x], 0, 3, rematerialize=True)
        return tape.gradient(value, x)

    assert gradient(tf.constant(1.0)) == 8  # 2^3


def test_replace():
    values = ["a", "b", "c"]
    assert replace(values, [2, 0], ["z", "x"]) == ["x", "b", "z"] and values == ["a", "b", "c"]


def test_a_mask_goes_with_the_inputs_of_a_loop():
    # The cut lies between the embedding, which makes the mask, and the losses of words, which leave out masked ones.
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(5, 3, mask_zero=True), keras.layers.Dense(1, name="head")]
    base = keras.Sequential([keras.Input((4,), dtype="int32"), *layers])
    x = tf.constant([[[1, 2, 0, 0], [3, 0, 0, 0], [4, 1, 2, 0]]])
    y = tf.random.stateless_normal((1, 3, 4, 1), (0, 0))
    gradients = []
    for rematerialize in (False, True):
        estimator = keras_maml.meta_gradients.Unrolled(rematerialize=rematerialize)
        rule = keras_maml.learning_rules.SGD(0.5)
        algorithm = keras_maml.Algorithm(rule, estimator, 2, layers="head")
        meta_model = keras_maml.MetaModel(base, algorithm, "parallel")
        meta_model.compile(loss="mse")
        step = tf.function(meta_model.meta_gradients)
        gradients.append(step({"support_x": x, "support_y": y, "query_x": x}, y)[2])
    for actual, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_stations_of_a_long_evaluation_are_loops():
    """Steps that are some of many are traced once for each stretch of them, with the values of unrolled steps."""
    traced = []

    def step(constants, carry, index):
        traced.append(index)
        return [0.5 * carry[0] + constants[0]]

    for first, last in ((0, 4), (4, 8)):
        looped = repeat(step, [tf.constant(1.0)], [tf.constant(3.0)], first, last, False, many=True)
        np.testing.assert_allclose(looped[0], 0.5**4 * 3.0 + 1.875)  # 1 + 1/2 + 1/4 + 1/8

    @tf.function
    def evaluated():
        traced.clear()
        return repeat(step, [tf.constant(1.0)], [tf.constant(3.0)], 0, 9, False, many=True)

    evaluated()
    assert len(traced) == 1
