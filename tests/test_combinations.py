"""Meta-gradients of whole models against finite differences of the whole meta-objective, in float64.

The objective is the mean query loss after adaptation, as a function of every meta-learned variable: the value that
`meta_gradients(..., variables=...)` returns beside its gradient. For each variable one random direction d:

    slope = (objective(value + epsilon d) - objective(value - epsilon d)) / (2 epsilon)   against   gradient . d

The truncation error of a slope is epsilon^2 times a third derivative, its rounding error 1e-16 times the loss over
epsilon. Batch moments of six examples make third derivatives of up to 1e4, so that epsilon = 1e-6 leaves both below
1e-8; the bound is 1e-5. Activations are smooth but in one case: the inner gradient of a ReLU network jumps at a kink,
and with it the objective. Of the few hundred pre-activations of that case, one lies within epsilon of its kink with a
chance of about 1e-4.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.optimizers import schedules

import keras_maml
from keras_maml import inner_loop
from keras_maml.learning_rules import (
    ALFA,
    Adagrad,
    Adam,
    AdamW,
    LayerwiseSGD,
    LearnedSGD,
    MetaCurvature,
    Momentum,
    RMSprop,
)
from keras_maml.meta_gradients import Unrolled
from keras_maml.task_mapping import Vectorized

TASKS, SUPPORTS, QUERIES = 2, 6, 4
# Each way: the mapping, and how the step runs. "vectorized" is what `task_mapping="vectorized"` does but for XLA.
WAYS = {
    "eager": ("parallel", lambda step: step),
    "graph": ("parallel", functools.partial(tf.function, autograph=False)),
    "xla": ("parallel", functools.partial(tf.function, autograph=False, jit_compile=True)),
    "vectorized": (Vectorized(jit_compile=False), functools.partial(tf.function, autograph=False)),
    "vectorized, xla": ("vectorized", functools.partial(tf.function, autograph=False)),
}
EVERYWHERE = ("graph", "eager", "xla", "vectorized")
WITHOUT_XLA = ("graph", "eager", "vectorized")


pytestmark = pytest.mark.usefixtures("float64")


def sequential(*members, shape=(3,), **kwargs):
    return keras.Sequential([keras.Input(shape, **kwargs), *members])


def dense():
    return sequential(layers.Dense(4, activation="tanh"), layers.Dense(2))


def batch_normalization_and_max_pooling():
    return sequential(
        layers.Conv2D(3, 3),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(2),
        shape=(6, 6, 2),
    )


def group_normalization():
    return sequential(
        layers.Conv2D(4, 3, padding="same", activation="tanh"),
        layers.GroupNormalization(2),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
        shape=(4, 4, 2),
    )


def layer_normalization():
    return sequential(layers.Dense(4, activation="tanh"), layers.LayerNormalization(), layers.Dense(2))


def lstm():
    return sequential(layers.LSTM(3), layers.Dense(2), shape=(4, 3))


def gru():
    return sequential(layers.GRU(3), layers.Dense(2), shape=(4, 3))


def embedding():
    pooling = layers.GlobalAveragePooling1D()
    return sequential(layers.Embedding(5, 3), pooling, layers.Dense(2), shape=(4,), dtype="int32")


def masked_embedding_and_lstm():
    embedding = layers.Embedding(5, 3, mask_zero=True)
    return sequential(embedding, layers.LSTM(3), layers.Dense(2), shape=(4,), dtype="int32")


def attention():
    inputs = keras.Input((4, 3))
    x = layers.MultiHeadAttention(num_heads=2, key_dim=2)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def dropout():
    return sequential(layers.Dense(6, activation="tanh"), layers.Dropout(0.4, seed=1), layers.Dense(2))


def shared_layer():
    inputs = keras.Input((3,))
    twice = layers.Dense(3, activation="tanh")
    return keras.Model(inputs, layers.Dense(2)(twice(twice(inputs))))


def nested_model():
    inner = sequential(layers.Dense(4, activation="tanh"), layers.BatchNormalization())
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(2)(inner(inputs)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(4, activation="tanh")
        self.normalization = layers.BatchNormalization()
        self.last = layers.Dense(2)

    def call(self, inputs):
        return self.last(self.normalization(self.first(inputs)))


def subclassed_model():
    model = Subclassed()
    model(np.zeros((1, 3)))
    return model


def regularisers():
    l2 = keras.regularizers.L2
    first = layers.Dense(
        *(4, "tanh"), kernel_regularizer=l2(0.2), bias_regularizer=l2(0.3), activity_regularizer=l2(0.1)
    )
    return sequential(first, layers.Dense(2, kernel_regularizer=l2(0.2)))


def support_statistics():
    normalization = keras_maml.layers.BatchNormalization("support")
    return sequential(layers.Dense(4, activation="tanh"), normalization, layers.Dense(2))


def moving_statistics():
    normalization = keras_maml.layers.BatchNormalization("moving")
    return sequential(layers.Dense(4, activation="tanh"), normalization, layers.Dense(2))


def frozen_layers():
    model = sequential(
        layers.Dense(4, activation="tanh"),
        layers.Dense(4, activation="tanh"),
        layers.BatchNormalization(),
        layers.Dense(2),
    )
    model.layers[1].trainable = model.layers[2].trainable = False
    return model


@dataclasses.dataclass
class Case:
    """A model, and the ways that TensorFlow can run it; XLA, which compiles for seconds, once for each kind of layer.

    `draws`: XLA draws other random numbers than TensorFlow without it, and so has an objective of its own.
    `padded`: the last support of the first task and the first query of the second have weight 0.
    """

    build: Callable
    ways: tuple = EVERYWHERE
    draws: bool = False
    padded: bool = False


CASES = {
    "dense": Case(dense, (*EVERYWHERE, "vectorized, xla")),
    # XLA has second derivatives of max-pooling in bfloat16 only, see below.
    "batch normalization, max-pooling": Case(batch_normalization_and_max_pooling, WITHOUT_XLA),
    "group normalization": Case(group_normalization),
    "layer normalization": Case(layer_normalization),
    # `tf.vectorized_map` cannot convert the gradient of a loop. Under XLA the GRU and the mask are right too, but the
    # mask compiles for ten seconds.
    "lstm": Case(lstm, ("graph", "eager", "xla")),
    "gru": Case(gru, ("graph", "eager")),
    "embedding": Case(embedding),
    "mask": Case(masked_embedding_and_lstm, ("graph", "eager")),
    "attention": Case(attention),
    "dropout": Case(dropout, ("graph", "eager", "vectorized", "xla"), draws=True),
    "shared layer": Case(shared_layer, WITHOUT_XLA),
    "nested model": Case(nested_model),
    "subclassed model": Case(subclassed_model, WITHOUT_XLA),
    "regularisers": Case(regularisers, WITHOUT_XLA),
    "support statistics": Case(support_statistics),
    "support statistics, padded": Case(support_statistics, WITHOUT_XLA, padded=True),
    "batch statistics, padded": Case(nested_model, WITHOUT_XLA, padded=True),
    "moving statistics": Case(moving_statistics, WITHOUT_XLA),
    "frozen layers": Case(frozen_layers, (*EVERYWHERE, "vectorized, xla")),
}


def shaken(model, generator):
    """Moves weights off their initial zeros and ones, where a wrong gradient might be right by chance."""
    for variable in model.trainable_variables:
        variable.assign_add(generator.normal(scale=0.2, size=variable.shape))
    for variable in model.non_trainable_variables:
        if variable.dtype == "float64":
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return model


def episodes(model, generator, padded=False):
    known = getattr(model, "inputs", None)  # a subclassed model does not say
    shape, dtype = (known[0].shape[1:], known[0].dtype) if known else ((3,), "float64")

    def inputs(examples):
        size = (TASKS, examples, *shape)
        return tf.constant(generator.integers(0, 5, size) if dtype == "int32" else generator.normal(size=size))

    def targets(examples):
        return tf.constant(generator.normal(size=(TASKS, examples, 2)))

    x = {"support_x": inputs(SUPPORTS), "support_y": targets(SUPPORTS), "query_x": inputs(QUERIES)}
    weight = None
    if padded:
        x["support_weight"] = tf.constant([[1.0, 0.5, 1.0, 1.0, 1.0, 0.0], [1.0] * SUPPORTS], tf.float64)
        weight = tf.constant([[1.0] * QUERIES, [0.0, 1.0, 2.0, 1.0]], tf.float64)
    return x, targets(QUERIES), weight


def objective_of(model, algorithm, mapping, data):
    """`(values -> (loss, gradients), values)` for the meta-learned variables of a new MetaModel; those of its rule are
    moved off their start, where rates are equal and matrices the identity."""
    meta_model = keras_maml.MetaModel(model, algorithm, mapping)
    meta_model.compile(loss="mse")

    def objective(values):
        meta_model.outer_step.assign(0)  # which fixes the masks of dropout
        loss, _, gradients = meta_model.meta_gradients(*data, variables=values)
        return loss, gradients

    values = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
    count, generator = len(model.trainable_variables), np.random.default_rng(1)
    return objective, values[:count] + [v + 0.05 * generator.normal(size=v.shape) for v in values[count:]]


def slopes(objective, values, directions, epsilon=1e-6):
    """One central difference for each variable."""
    result = []
    for i, direction in enumerate(directions):
        moved = [[*values[:i], values[i] + sign * epsilon * direction, *values[i + 1 :]] for sign in (1, -1)]
        above, below = (float(objective(m)[0]) for m in moved)
        result.append((above - below) / (2 * epsilon))
    return np.array(result)


def directions_of(values):
    return [np.random.default_rng(i).normal(size=v.shape) for i, v in enumerate(values)]


def derivatives(gradients, directions):
    return np.array([np.vdot(g, d) for g, d in zip(gradients, directions, strict=True)])


def given(case):
    """`(model, (x, y, sample_weight))`, the same in every call."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    model = shaken(case.build(), generator)
    return model, episodes(model, generator, case.padded)


def compiles_with_xla(concrete_function):
    library = concrete_function.graph.as_graph_def().library
    return any(function.attr["_XlaMustCompile"].b for function in library.function)


def check(case, algorithm, ways):
    model, data = given(case)
    losses, expected = [], None
    for way in ways:
        mapping, wrap = WAYS[way]
        objective, values = objective_of(model, algorithm, mapping, data)
        directions = directions_of(values)
        step = wrap(objective)
        if way == "vectorized, xla":
            assert compiles_with_xla(step.get_concrete_function(values))
        own = case.draws and "xla" in way
        if expected is None or own:
            # The slopes of one way serve all that have the same objective: that losses are equal is checked.
            expected = slopes(step, values, directions)
        loss, gradients = step(values)
        largest = np.abs(expected).max()
        assert largest > 1e-3, "a flat objective shows nothing"
        # The absolute part is for gradients that are zero, as that of a bias before a normalisation.
        along = derivatives(gradients, directions)
        np.testing.assert_allclose(along, expected, rtol=1e-5, atol=1e-7 * largest, err_msg=way)
        if not own:
            losses.append(float(loss))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_maml(name):
    check(CASES[name], keras_maml.MAML(0.3, 2), CASES[name].ways)


ALGORITHMS = {
    "MetaSGD": keras_maml.MetaSGD(0.3, 2),
    "LayerwiseSGD": keras_maml.Algorithm(LayerwiseSGD(0.3), Unrolled(), 2),
    "Momentum": keras_maml.Algorithm(Momentum(0.2, 0.9), Unrolled(), 3),
    "Nesterov": keras_maml.Algorithm(Momentum(0.2, 0.9, nesterov=True), Unrolled(), 3),
    "LearnedSGD, clipped": keras_maml.Algorithm(LearnedSGD(0.3, clipnorm=0.5), Unrolled(), 2),
    "ANIL": keras_maml.ANIL(0.3, 2),
    "BOIL": keras_maml.BOIL(0.3, 2),
}


@pytest.mark.parametrize("name", ["dense", "support statistics"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithms(algorithm, name):
    # The variables are also those of the rule: step sizes of each weight, or of each variable and step.
    ways = ("graph", "vectorized") if name == "dense" else ("graph",)
    check(CASES[name], ALGORITHMS[algorithm], ways)


# Rules with more of their own, on one model each: the kernels of convolutions have a mode of the window.
BOTH = ("graph", "vectorized")
RULES = {
    "positive rates": (LayerwiseSGD(0.3, positive=True), "dense", ("graph",)),
    "Adam": (Adam(0.1), "dense", BOTH),
    "AdamW": (AdamW(0.1, 0.2), "support statistics", ("graph",)),
    "RMSprop": (RMSprop(0.1), "dense", ("graph",)),
    "Adagrad": (Adagrad(0.1, clipnorm=0.5), "dense", ("graph",)),
    "MetaCurvature": (MetaCurvature(0.3), "group normalization", BOTH),
    "MetaCurvature, diagonal": (MetaCurvature(0.3, largest_matrix=3), "dense", ("graph",)),
    "ALFA": (ALFA(0.3, seed=0), "support statistics", BOTH),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name):
    rule, model, ways = RULES[name]
    check(CASES[model], keras_maml.Algorithm(rule, Unrolled(), 2), ways)


# Unrolled steps are right by the tests above; loops are compared with them, in every mapping. Each case has what a loop
# could lose: gradients through the inputs of what is cut off, learned step sizes, the state of a rule, moments.
LOOPS = {
    "ANIL, learned rates": (
        dense,
        keras_maml.Algorithm(LayerwiseSGD(0.3), Unrolled(), 3, layers="dense_1"),
        (*WITHOUT_XLA, "vectorized, xla"),
    ),
    "momentum, clipped": (
        support_statistics,
        keras_maml.Algorithm(Momentum(0.2, clipnorm=0.5), Unrolled(), 3),
        ("graph", "vectorized"),
    ),
    "a rate for each weight": (embedding, keras_maml.MetaSGD(0.3, 3), ("graph", "vectorized")),
    "masks": (dropout, keras_maml.MetaSGD(0.3, 3), ("graph", "vectorized")),
    "convolutions": (batch_normalization_and_max_pooling, keras_maml.MAML(0.2, 3), ("graph",)),
    "recurrence": (lstm, keras_maml.MAML(0.3, 3), ("graph",)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_rematerialised_steps(name):
    build, algorithm, ways = LOOPS[name]
    keras.backend.clear_session(free_memory=False)  # so that the second dense layer is `dense_1`
    model, data = given(Case(build))
    reference, values = objective_of(model, algorithm, "parallel", data)
    loss, gradients = WAYS["graph"][1](reference)(values)
    algorithm = keras_maml.Algorithm(algorithm.rule, Unrolled(rematerialize=True), 3, layers=algorithm.layers)
    largest = max(np.abs(g).max() for g in gradients)
    for way in ways:
        mapping, wrap = WAYS[way]
        other, rematerialised = wrap(objective_of(model, algorithm, mapping, data)[0])(values)
        np.testing.assert_allclose(other, loss, rtol=1e-10, err_msg=way)
        for actual, expected in zip(rematerialised, gradients, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-10 * largest, err_msg=way)


def test_many_steps_by_finite_differences(monkeypatch):
    monkeypatch.setattr(inner_loop, "MOST_UNROLLED_STEPS", 0)
    check(CASES["support statistics"], keras_maml.Algorithm(LayerwiseSGD(0.3), Unrolled(), 3), ("graph",))


# Each rule with what it has of its own: moments that a step divides by, matrices, a net.
MANY_STEPS = {
    "Adam": Adam(schedules.CosineDecay(0.05, 12, alpha=0.1)),
    "MetaCurvature": MetaCurvature(0.1),
    "ALFA": ALFA(0.1, seed=0),
}


@pytest.mark.parametrize("name", MANY_STEPS)
def test_twelve_steps_of_a_rule_by_finite_differences(name):
    assert inner_loop.MOST_UNROLLED_STEPS < 12
    ways = BOTH if name == "Adam" else ("graph",)
    check(CASES["dense"], keras_maml.Algorithm(MANY_STEPS[name], Unrolled(), 12), ways)


def low_rank_adapters():
    model = dense()
    for layer in model.layers:
        layer.enable_lora(2)
    return model


def test_low_rank_adapters():
    # Keras keeps the weights of LoRA in float32 (7 digits) whatever the policy, so that a difference of losses is off
    # by about 1e-7. With epsilon = 0.005 that is 2e-5 of a slope; extrapolation takes away the truncation error in
    # epsilon^2 and leaves that in epsilon^4, which is less. The bound is 1e-3.
    model, data = given(Case(low_rank_adapters))
    objective, values = objective_of(model, keras_maml.MAML(0.3, 2), "parallel", data)
    assert [v.dtype for v in values] == [tf.float64, tf.float32, tf.float32] * 2
    directions = [d.astype(v.dtype.as_numpy_dtype) for d, v in zip(directions_of(values), values, strict=True)]
    step = tf.function(objective)
    wide, narrow = (slopes(step, values, directions, epsilon) for epsilon in (0.005, 0.0025))
    expected = (4 * narrow - wide) / 3
    for function in (step, objective):
        actual = derivatives(function(values)[1], directions)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def by_hand(model, x, y, learning_rate):
    """Gradient of one step of MAML on one task, by two tapes and `stateless_call`: as without a library."""
    values, state = ([v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables))

    def loss(values, x, y):
        return difference(y, model.stateless_call(values, state, x, training=True)[0])[0]

    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values)
            support_loss = loss(values, x["support_x"][0], x["support_y"][0])
        gradients = inner.gradient(support_loss, values)
        moved = [v - learning_rate * g for v, g in zip(values, gradients, strict=True)]
        query_loss = loss(moved, x["query_x"][0], y[0])
    return outer.gradient(query_loss, values)


def difference(y, predictions):
    del y
    return predictions[:, 0, 0] - predictions[:, 1, 0]


@pytest.mark.parametrize("normalization", [layers.BatchNormalization, layers.GroupNormalization])
def test_stock_normalisation_by_hand_has_wrong_meta_gradients(normalization):
    # One example, of two positions. Weights w = (1, -1); the support's positions are unit vectors, so that the values
    # to normalise are w1 and w2, their mean m = (w1 + w2) / 2, their variance v = h^2 with h = (w1 - w2) / 2 = 1. With
    # epsilon = 1 and f(h) = h / sqrt(h^2 + 1) they become f(h) and -f(h): the loss, their difference, is 2 f(h). Its
    # gradient is (f', -f') with f'(1) = 2^-1.5 = 0.353553, its Hessian f''/2 [[1, -1], [-1, 1]] with
    # f''(1) = -3 * 2^-2.5 = -0.530330. A step of 1 leads to w = (0.646447, -0.646447).
    #
    # The second position of the query is twice a unit vector: 2 f(h) with h = (w1 - 2 w2) / 2 = 0.969670 has the
    # gradient p (1, -2), p = f'(0.969670), and the meta-gradient is (I - Hessian) p (1, -2) = p (1.795495, -2.795495).
    #
    # `tf.nn.moments` stops the gradient at the mean: right to first order, as the mean of deviations is 0. The Hessian
    # of v becomes I in place of [[1/2, -1/2], [-1/2, 1/2]], too large by [[1/2, 1/2], [1/2, 1/2]]. Times
    # d loss / d v = -h (v + 1)^-1.5 = -0.353553, that is wrong for gradients with a part along (1, 1): here the
    # meta-gradient is off by p (-0.176777, -0.176777), which is 7.5 %.
    #
    # Should stock layers be right one day, `layers.py` can become shorter.
    dense = layers.Dense(1, use_bias=False)
    kwargs = {"groups": 1} if normalization is layers.GroupNormalization else {}
    model = sequential(dense, normalization(epsilon=1.0, scale=False, center=False, **kwargs), shape=(2, 2))
    dense.kernel.assign([[1.0], [-1.0]])
    x = {
        "support_x": tf.constant([[[[1.0, 0.0], [0.0, 1.0]]]], tf.float64),
        "support_y": tf.zeros((1, 1, 2, 1), tf.float64),
        "query_x": tf.constant([[[[1.0, 0.0], [0.0, 2.0]]]], tf.float64),
    }
    y = tf.zeros((1, 1, 2, 1), tf.float64)
    p = (1 + 0.9696699141100894**2) ** -1.5
    (stock,) = by_hand(model, x, y, 1.0)
    np.testing.assert_allclose(stock[:, 0] / p, [1.795495 - 0.176777, -2.795495 - 0.176777], rtol=1e-6)
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(1.0, 1))
    meta_model.compile(loss=difference)
    _, _, (right,) = meta_model.meta_gradients(x, y)
    np.testing.assert_allclose(right[:, 0] / p, [1.795495, -2.795495], rtol=1e-6)


def test_max_pooling_under_xla_is_right_to_first_order():
    # XLA gathers the inner gradient through bfloat16 (8 bits) when it differentiates max-pooling twice. First-order
    # MAML differentiates once. In float32, as XLA has no such gradient in float64 at all.
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    model, data = given(CASES["batch normalization, max-pooling"])
    data = tf.nest.map_structure(lambda t: tf.cast(t, "float32"), data[:2])
    objective, values = objective_of(model, keras_maml.FOMAML(0.1, 2), "parallel", data)
    expected, actual = (f(values)[1] for f in (objective, tf.function(objective, jit_compile=True)))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4 * max(np.abs(e).max() for e in expected))
