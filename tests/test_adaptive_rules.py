"""Adaptive rules against Keras's own optimizers, by hand, and where the gradient is zero."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml.learning_rules import Adagrad, Adam, AdamW, RMSprop
from keras_maml.meta_gradients import FirstOrder, Unrolled

SHAPES = ((3, 2), (2,))
KINDS = (Adam, AdamW, RMSprop, Adagrad)


# Keras adds epsilon to the root of Adam and AdamW, and the rules add it inside: with next to none they are the same.
# Gradients are then far from zero. In the other two it stands in the same place, and is large enough to be seen.
# Settings are sums of few powers of two, as Keras rounds some of them to float32.
PAIRS = {
    "Adam": (Adam(0.125, 0.75, 0.9375, 1e-30), lambda: keras.optimizers.Adam(0.125, 0.75, 0.9375, 1e-15)),
    "AdamW": (AdamW(0.125, 0.5, 0.75, 0.9375, 1e-30), lambda: keras.optimizers.AdamW(0.125, 0.5, 0.75, 0.9375, 1e-15)),
    "RMSprop": (RMSprop(0.125, 0.75, 0.25), lambda: keras.optimizers.RMSprop(0.125, 0.75, epsilon=0.25)),
    "Adagrad": (Adagrad(0.125, 0.5, 0.25), lambda: keras.optimizers.Adagrad(0.125, 0.5, 0.25)),
    "Adam, no memory": (Adam(0.125, 0.0, 0.0, 1e-30), lambda: keras.optimizers.Adam(0.125, 0.0, 0.0, 1e-15)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_as_the_optimizers_of_keras(float64, name):
    rule, make = PAIRS[name]
    optimizer, generator = make(), np.random.default_rng(0)
    variables = [keras.Variable(generator.normal(size=shape), dtype="float64") for shape in SHAPES]
    params = [tf.convert_to_tensor(v) for v in variables]
    state = rule.init(params)
    for index in range(15):
        gradients = [tf.constant(generator.uniform(0.1, 1.0, s) * generator.choice([-1, 1], s)) for s in SHAPES]
        params, state = rule.step(params, gradients, state, index)
        optimizer.apply(gradients, variables)
        for actual, expected in zip(params, variables, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-10, err_msg=f"step {index}")


def one_step(rule, gradient, dtype="float64"):
    """The move of a first step from 0."""
    params = [tf.zeros([1], dtype)]
    return rule.step(params, [gradient], rule.init(params), 0)[0][0]


# Of a first step of 0.1 with g = 3: the means of Adam are corrected to g and g^2, RMSprop has v = 0.2 * 9.
MOVES = {
    "Adam": (Adam(0.1, epsilon=7.0), -0.1 * 3 / 4),
    "AdamW": (AdamW(0.1, 0.5, epsilon=7.0), -0.1 * 3 / 4),  # no decay of 0
    "RMSprop": (RMSprop(0.1, 0.8, epsilon=2.2), -0.1 * 3 / 2),
    "Adagrad": (Adagrad(0.1, 5.0, epsilon=2.0), -0.1 * 3 / 4),
}


@pytest.mark.parametrize("name", MOVES)
def test_epsilon_is_inside_the_root(name):
    rule, expected = MOVES[name]
    np.testing.assert_allclose(one_step(rule, tf.constant([3.0], "float64")), [expected], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_at_a_zero_gradient(kind, dtype):
    # Of -0.1 g / sqrt(c g^2 + s + epsilon) at g = 0: -0.1 / sqrt(s + epsilon), with s = 0 but for Adagrad. The second
    # derivative is 0, as the function is odd.
    rule = kind(0.1, epsilon=1e-4)
    zero = tf.zeros([1], dtype)
    with tf.GradientTape() as outer:
        outer.watch(zero)
        with tf.GradientTape() as inner:
            inner.watch(zero)
            moved = one_step(rule, zero, dtype)
        slope = inner.gradient(moved, zero)
    expected = -0.1 / np.sqrt(1e-4 + (0.1 if kind is Adagrad else 0.0))
    np.testing.assert_array_equal(moved, [0.0])
    np.testing.assert_allclose(slope, [expected], rtol=1e-5)
    np.testing.assert_array_equal(outer.gradient(slope, zero), [0.0])


@pytest.mark.parametrize(("kind", "steps"), [(Adam, 12), (RMSprop, 2)])
def test_rows_that_the_supports_do_not_reach(kind, steps):
    # Row 3 of the embedding is in the queries alone: its inner gradient is 0 at every step, and so are the derivatives
    # of that gradient, so that the outer gradient through the steps, 12 of them in a loop, is that of first order.
    keras.utils.set_random_seed(0)
    pooling = keras.layers.GlobalAveragePooling1D()
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), keras.layers.Embedding(4, 3), pooling, keras.layers.Dense(1)]
    )
    x = {
        "support_x": np.array([[[0, 1], [1, 2]]], "int32"),
        "support_y": np.array([[[1.0], [-1.0]]], "float32"),
        "query_x": np.array([[[3, 1], [3, 2]]], "int32"),
    }
    found = []
    for estimator in (Unrolled(), FirstOrder()):
        meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(kind(0.01), estimator, steps), "parallel")
        meta_model.compile(loss="mse")
        _, _, gradients = tf.function(meta_model.meta_gradients)(x, np.array([[[1.0], [2.0]]], "float32"))
        assert all(np.isfinite(g).all() and np.abs(g).max() > 1e-5 for g in gradients)
        found.append(gradients[0][3])
    assert np.abs(found[0]).max() > 1e-3
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_starts_anew(kind):
    # One task three times, in a batch and alone: a state that went from one to the next would tell them apart.
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(kind(0.1), Unrolled(), 3))
    meta_model.compile(loss="mse")
    generator = np.random.default_rng(0)
    support_x, support_y, query_x = (generator.normal(size=(4, n)).astype("float32") for n in (2, 1, 2))
    batch = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
    predictions = meta_model.predict({k: np.stack([v] * 3) for k, v in batch.items()}, verbose=0)
    learner = meta_model.adapt(support_x, support_y)
    assert np.abs(predictions[0] - model(query_x)).max() > 0.1
    for row in predictions:
        np.testing.assert_allclose(row, learner(query_x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(epsilon=0.0), "`epsilon` must be a positive number. Received: epsilon=0.0"),
        (lambda: RMSprop(epsilon=-1.0), "`epsilon` must be a positive number"),
        (lambda: Adagrad(epsilon="small"), "`epsilon` must be a positive number"),
        (lambda: Adam(beta_1=1.0), r"`beta_1` must be in \[0, 1\). Received: beta_1=1.0"),
        (lambda: AdamW(beta_2=-0.1), r"`beta_2` must be in \[0, 1\)"),
        (lambda: RMSprop(rho=1.5), r"`rho` must be in \[0, 1\)"),
        (lambda: AdamW(weight_decay=-0.1), "`weight_decay` must be a finite number of at least 0. Received: weight"),
        (lambda: Adagrad(initial_accumulator_value=None), "`initial_accumulator_value` must be a finite number"),
        (lambda: Adam(0.0), "`learning_rate` must be a positive number"),
        (lambda: Adagrad(clipnorm=0.0), "`clipnorm` must be a positive number"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
