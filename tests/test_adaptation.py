"""The functional core: pure models, the inner loop, the cut below what adapts, and dropout masks.

The smallest task: one weight w, prediction w x with x = 1, loss (w - target)^2 / 2 with the gradient w - target. A step
of 0.1 on the target 1 maps w - 1 to 0.9 (w - 1).
"""

import collections
import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import inner_loop
from keras_maml.adaptation import Learner, Task, value_and_gradients
from keras_maml.learning_rules import SGD, LayerwiseSGD, Momentum
from keras_maml.losses import TaskLoss
from keras_maml.pure_model import PureModel
from keras_maml.selection import split


@pytest.fixture(params=[10, 0], ids=["unrolled", "loop"])
def either_way(request, monkeypatch):
    """Runs a test with unrolled steps and with loops."""
    monkeypatch.setattr(inner_loop, "MOST_UNROLLED_STEPS", request.param)


def half_square(y, predictions):
    return tf.square(y[:, 0] - predictions[:, 0]) / 2


def line(weight=3.0, **kwargs):
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, **kwargs)])
    model.set_weights([np.array([[weight]])])
    return model


def task_of(model, rule=None, steps=1, support=((1.0, 1.0),), query=((1.0, -2.0),), weights=(None, None), **kwargs):
    """A `Task` on pairs of x and y."""
    rule = rule or SGD(0.1)
    rule.build(model.trainable_variables, steps)
    loss = TaskLoss(half_square)
    learner = Learner(
        **{
            "model": PureModel(model),
            "halves": None,
            "mask": (True,) * len(model.trainable_variables),
            "rule": rule,
            "extra_variables": list(rule.trainable_variables),
            "inner_loss": loss,
            "loss": loss,
            "steps": steps,
            "training": False,
            **kwargs,
        }
    )
    examples = []
    for pairs, weight in zip((support, query), weights, strict=True):
        x, y = (tf.constant([[pair[i]] for pair in pairs]) for i in (0, 1))
        examples.append((x, y, None if weight is None else tf.constant(weight)))
    return Task(learner, *examples, [v.value for v in model.non_trainable_variables])


def theta(*values):
    return [tf.constant([[v]]) for v in values]


def numbers(iterates):
    """The only weight of each iterate."""
    return [float(params[0][0, 0]) for params, _ in iterates]


# ----------------------------------------------------------------------------------------------------- pure models


def test_a_pure_model_reads_the_values_given_and_touches_no_variable():
    # Weight 2 in place of 5: prediction 2 x, penalty 0.5 * 2^2.
    model = line(5.0, kernel_regularizer=keras.regularizers.L2(0.5))
    predictions, penalty, state = PureModel(model)(theta(2.0), [], tf.constant([[3.0]]), False, "query")
    np.testing.assert_allclose([predictions[0, 0], penalty], [6.0, 2.0])
    assert state == [] and model.get_weights()[0] == 5.0


def test_a_pure_model_threads_state():
    # Momentum 1/2 and batches of mean 2: 0 -> 1 -> 1.5, though the layer itself stays at 0.
    layer = keras_maml.layers.BatchNormalization("moving", momentum=0.5)
    model = keras.Sequential([keras.Input((1,)), layer])
    pure, x = PureModel(model), tf.constant([[1.0], [3.0]])
    params, state = ([v.value for v in part] for part in (pure.trainable, pure.non_trainable))
    for expected in (1.0, 1.5):
        _, _, state = pure(params, state, x, True, "support")
        np.testing.assert_allclose(state[0][0], expected)
    assert layer.moving_mean[0] == 0
    assert pure(params, state, x, False, "support")[2][0] is state[0]


def test_penalties_are_those_of_one_call():
    # An activity penalty of 1 * sum(predictions^2): 3^2, then 6^2, not their sum.
    model = line(3.0, activity_regularizer=keras.regularizers.L2(1.0))
    pure = PureModel(model)
    for x in (1.0, 2.0):
        np.testing.assert_allclose(pure(theta(3.0), [], tf.constant([[x]]), False, "query")[1], (3 * x) ** 2)


def test_models_whose_call_takes_no_training_argument():
    # They get none, as in Keras's own `fit`: their dropout is off.
    class Simple(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.dropout = layers.Dense(1, use_bias=False), layers.Dropout(0.9)

        def call(self, inputs):
            return self.dropout(self.dense(inputs))

    model = Simple()
    model(tf.ones((1, 1)))
    pure = PureModel(model)
    state = [v.value for v in pure.non_trainable]
    predictions, penalty, _ = pure(theta(2.0), state, tf.constant([[3.0]]), True, "query")
    assert predictions[0, 0] == 6 and penalty == 0


# --------------------------------------------------------------------------------------------------- the inner loop


@pytest.mark.parametrize("make", [lambda: SGD(0.1), lambda: Momentum(0.1), lambda: LayerwiseSGD(0.1)])
def test_iterates_are_those_of_separate_runs(make, either_way):
    together = task_of(line(), make(), steps=5)
    extra = [tf.convert_to_tensor(v) for v in together.learner.extra_variables]
    iterates = numbers(together.iterates([*theta(3.0), *extra], at=(0, 2, 5)))
    separate = [numbers(together.iterates([*theta(3.0), *extra], at=(steps,)))[0] for steps in (0, 2, 5)]
    assert iterates == separate
    if isinstance(together.learner.rule, SGD | LayerwiseSGD):
        np.testing.assert_allclose(iterates, [3, 1 + 2 * 0.9**2, 1 + 2 * 0.9**5], rtol=1e-6)


def test_the_default_is_all_steps():
    assert numbers(task_of(line(), steps=4).iterates(theta(3.0))) == pytest.approx([1 + 2 * 0.9**4], rel=1e-6)


def test_adaptation_on_the_whole_episode(either_way):
    # Support target 1, query target -2 of weight 3: mean -1.25, and 3 - 0.1 (3 + 1.25) = 2.575. Without weights the
    # mean is -0.5: 2.65. With a weight of the support alone, 3 and 1: (3 - 2) / 4 = 0.25: 2.725.
    for weights, expected in (((None, [3.0]), 2.575), ((None, None), 2.65), (([3.0], None), 2.725)):
        task = task_of(line(), weights=weights)
        assert numbers(task.iterates(theta(3.0), data="episode")) == pytest.approx([expected], rel=1e-6)
        assert numbers(task.iterates(theta(3.0))) == pytest.approx([2.8], rel=1e-6)


def test_the_whole_episode_of_nested_inputs():
    # Prediction w a with the weight 3 and a = 1 in both examples, which sit in a dict; targets as above.
    inputs = {name: keras.Input((1,), name=name) for name in "ab"}
    model = keras.Model(inputs, layers.Dense(1, use_bias=False)(inputs["a"]) + 0 * inputs["b"])
    task = task_of(model)
    one = tf.ones((1, 1))
    task.support, task.query = ({"a": one, "b": one}, one, None), ({"a": one, "b": one}, -2 * one, None)
    assert numbers(task.iterates(theta(3.0), data="episode")) == pytest.approx([2.65], rel=1e-6)


@pytest.mark.parametrize("stop, expected", [(False, [1, 0.9**2, 0.9**3]), (True, [1, 1, 1])])
def test_stopped_gradients(stop, expected, either_way):
    # d phi / d theta is 0.9 for every step; with constant inner gradients it is 1. The values are the same.
    task, variables = task_of(line()), theta(3.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(variables)
        iterates = [params[0] for params, _ in task.iterates(variables, at=(0, 2, 3), stop_gradients=stop)]
    np.testing.assert_allclose([tape.gradient(p, variables[0])[0, 0] for p in iterates], expected, rtol=1e-6)
    np.testing.assert_allclose([p[0, 0] for p in iterates], [3, 1 + 2 * 0.9**2, 1 + 2 * 0.9**3], rtol=1e-6)


@pytest.mark.parametrize("rematerialize", [False, True])
def test_truncated_gradients(rematerialize, either_way):
    # Of four steps, the last two are differentiated, and iterates count from theirs: d phi / d theta is 1 up to step 2,
    # then 0.9 for each step.
    task, variables = task_of(line()), theta(3.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(variables)
        iterates = task.iterates(variables, at=(1, 3, 4), truncate=2, rematerialize=rematerialize)
        iterates = [params[0] for params, _ in iterates]
    np.testing.assert_allclose([tape.gradient(p, variables[0])[0, 0] for p in iterates], [1, 0.9, 0.81], rtol=1e-6)
    np.testing.assert_allclose([p[0, 0] for p in iterates], [1 + 2 * 0.9**k for k in (1, 3, 4)], rtol=1e-6)


def test_losses_of_supports_and_queries():
    # At w = 4: (4 - 1)^2 / 2 by the inner loss, twice that would be the outer's; on the query (4 + 2)^2, doubled.
    task = task_of(line(), loss=TaskLoss(half_square, loss_weights=2.0))
    for on, expected in (("support", 4.5), ("query", 36.0)):
        loss, predictions, state = task.loss(theta(4.0), [], on)
        assert (float(loss), float(predictions[0, 0]), state) == (expected, 4.0, [])
    assert task.predict(theta(4.0), [])[0, 0] == 4


def test_what_does_not_adapt_stays_and_what_no_loss_reaches_is_known(either_way):
    class Spare(layers.Layer):
        def build(self, input_shape):
            self.spare = self.add_weight(shape=(1, 1), name="spare")
            self.used = self.add_weight(shape=(1, 1), initializer="ones", name="used")

        def call(self, inputs):
            return inputs * self.used

    model = keras.Sequential([keras.Input((1,)), Spare(), layers.Dense(1, use_bias=False)])
    task = task_of(model, mask=(True, False, True))
    ((params, _),) = task.iterates(theta(7.0, 1.0, 3.0))
    np.testing.assert_allclose([float(p[0, 0]) for p in params], [7, 1, 2.8], rtol=1e-6)
    assert task.unreached == {0}


def test_value_and_gradients():
    # Row 1 of an embedding is read: a dense gradient, not IndexedSlices; of what is not read, None.
    table, other = tf.constant([[1.0], [5.0]]), tf.constant(2.0)
    value, gradients = value_and_gradients(lambda v: (tf.reduce_sum(tf.gather(v[0], [1]) ** 2), "more"), [table, other])
    assert (float(value[0]), value[1], gradients[1]) == (25.0, "more", None)
    np.testing.assert_array_equal(gradients[0], [[0.0], [10.0]])


@pytest.mark.parametrize("dtype, expected", [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")])
def test_losses_are_at_least_float32(dtype, expected, either_way):
    # 2 x = 4 on the target 1: 9 / 2, and a penalty of 0.5 * 2^2. Half precision would round a sum over many examples.
    task = task_of(line(dtype=dtype, kernel_regularizer=keras.regularizers.L2(0.5)), support=((2.0, 1.0),))
    loss, _, _ = task.loss([tf.constant([[2.0]], dtype)], [], "support")
    assert (loss.dtype, float(loss)) == (expected, 6.5)
    ((params, _),) = task.iterates([tf.constant([[2.0]], dtype)])
    assert params[0].dtype == dtype
    np.testing.assert_allclose(float(params[0][0, 0]), 2 - 0.1 * (3 * 2 + 2), rtol=1e-2)


def test_loss_scale_saves_small_gradients_of_float16():
    # 2^-26 is zero in float16, 2^-16 is not.
    def function(values):
        return (tf.cast(tf.cast(values[0], tf.float16), tf.float32) * 2.0**-26,)

    assert [float(value_and_gradients(function, [tf.constant(1.0)], s)[1][0]) for s in (1.0, 1024.0)] == [0, 2.0**-26]
    for dtype, expected in (("float32", 1), ("mixed_bfloat16", 1), ("mixed_float16", 1024)):
        assert task_of(line(dtype=dtype)).learner.loss_scale == expected


# -------------------------------------------------------------------------------------------- cutting the model in two


@keras.saving.register_keras_serializable("test_adaptation")
class Counted(layers.Dense):
    """A Dense layer that counts its calls, those of its clones too."""

    calls = 0

    def call(self, inputs, training=None):
        Counted.calls += 1
        return super().call(inputs, training=training)


def episode(x_shape=(3,), integers=False, weighted=False):
    generator = np.random.default_rng(0)

    def inputs(examples):
        size = (2, examples, *x_shape)
        return generator.integers(0, 5, size) if integers else generator.normal(size=size).astype("float32")

    x = {"support_x": inputs(4), "support_y": generator.normal(size=(2, 4, 2)).astype("float32"), "query_x": inputs(3)}
    if weighted:
        x["support_weight"] = np.array([[1, 1, 1, 0], [1, 0.5, 1, 1]], "float32")
    return x, generator.normal(size=(2, 3, 2)).astype("float32")


def meta_model_of(model, algorithm):
    meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
    meta_model.compile(loss="mse")
    return meta_model


def test_the_body_is_evaluated_once_for_the_supports_of_a_task():
    def calls(steps, cut=True):
        model = keras.Sequential([keras.Input((3,)), Counted(4, activation="tanh"), layers.Dense(2)])
        meta_model = meta_model_of(model, keras_maml.ANIL(0.1, steps))
        if not cut:
            meta_model._halves = None
        Counted.calls = 0
        tf.function(meta_model.meta_gradients).get_concrete_function(*episode())
        return Counted.calls

    once = calls(1)
    assert calls(5) == once
    # Without the cut, one call more for every step more: so it is that which is counted.
    assert calls(5, cut=False) == once + 4


def body(*members, shape=(3,), **kwargs):
    """A model that adapts the last layer, `head`, or what the case says."""
    return keras.Sequential([keras.Input(shape, **kwargs), *members, layers.Dense(2, name="head")])


def with_branches():
    inputs = keras.Input((3,))
    one, two = (layers.Dense(4, activation="tanh")(inputs) for _ in range(2))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.concatenate([one, two])))


def normalised(statistics):
    dense, normalization = layers.Dense(4), keras_maml.layers.BatchNormalization(statistics)
    return body(dense, normalization, layers.Activation("tanh"))


CUTS = {
    "dense": (lambda: body(layers.Dense(4, activation="tanh")), "head", {}),
    "several layers adapt": (
        lambda: body(layers.Dense(4, activation="tanh"), layers.Dense(4, name="neck")), ["neck", "head"], {},
    ),
    "the middle adapts": (
        lambda: body(layers.Dense(4, activation="tanh"), layers.Dense(4, name="neck"), layers.ReLU()), "neck", {},
    ),
    "batch": (lambda: normalised("batch"), "head", {"weighted": True}),
    "support": (lambda: normalised("support"), "head", {"weighted": True}),
    "a recurrent body": (lambda: body(layers.LSTM(3), shape=(4, 3)), "head", {"x_shape": (4, 3)}),
    "support, above the cut": (
        lambda: body(layers.Dense(4), layers.Dense(4, name="neck"), keras_maml.layers.BatchNormalization("support")),
        "neck",
        {},
    ),
    "dropout above the cut": (
        lambda: body(layers.Dense(4), layers.Dense(32, name="neck"), layers.Dropout(0.5, seed=1)), ["neck", "head"], {},
    ),
    "a mask below the cut": (
        lambda: body(
            layers.Embedding(5, 3, mask_zero=True), layers.GlobalAveragePooling1D(), shape=(4,), dtype="int32"
        ),
        "head",
        {"x_shape": (4,), "integers": True},
    ),
    "branches": (with_branches, "head", {}),
    "penalties": (
        lambda: body(
            layers.Dense(4, kernel_regularizer="l2", activity_regularizer="l2"),
            layers.Dense(4, kernel_regularizer="l2", activity_regularizer="l2", name="neck"),
        ),
        ["neck", "head"],
        {},
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_model_gives_what_the_whole_model_gives(name):
    build, adapting, shapes = CUTS[name]
    keras.utils.set_random_seed(0)
    model, (x, y) = build(), episode(**shapes)
    algorithm = keras_maml.Algorithm(SGD(0.5), keras_maml.meta_gradients.Unrolled(), 2, layers=adapting)
    results = []
    for cut in (True, False):
        meta_model = meta_model_of(model, algorithm)
        assert meta_model._halves is not None
        if not cut:
            meta_model._halves = None
        loss, predictions, gradients = meta_model.meta_gradients(x, y)
        learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
        results.append([loss, predictions, *gradients, meta_model(x), *learner.trainable_variables])
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = layers.Dense(4, activation="tanh"), layers.Dense(2, name="head")

        def call(self, inputs):
            return self.head(self.body(inputs))

    model = Own()
    model(tf.ones((1, 3)))
    return model


def with_a_bypass():
    inputs = keras.Input((3,))
    x = layers.Dense(3, activation="tanh")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(x) + layers.Dense(2, name="bypass")(inputs))


def with_a_layer_on_both_sides():
    inputs = keras.Input((3,))
    shared = layers.Dense(3, activation="tanh")
    return keras.Model(inputs, layers.Dense(2)(shared(layers.Dense(3, name="head")(shared(inputs)))))


def with_a_mask():
    lstm = layers.LSTM(2, name="head")
    return keras.Sequential([keras.Input((4, 3)), layers.Masking(), layers.Dense(3), lstm])


REFUSED = {
    "a subclassed model": (subclassed, "subclassed model"),
    "dropout in the body": (lambda: body(layers.Dense(4), layers.Dropout(0.5)), "draws random numbers"),
    "noise in the body": (lambda: body(layers.Dense(4), layers.GaussianNoise(0.5)), "draws random numbers"),
    "recurrent dropout": (lambda: body(layers.GRU(3, dropout=0.5), shape=(4, 3)), "draws random numbers"),
    "moving statistics in the body": (lambda: normalised("moving"), "learns its moving statistics"),
    "no body": (lambda: body(layers.ReLU()), None),
    "a path around the cut": (with_a_bypass, "no cut before layer 'head'"),
    "a layer on both sides": (with_a_layer_on_both_sides, "no cut before layer 'head'"),
    "a mask at the cut": (with_a_mask, "layer 'head' has several inputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_there_is_no_cut(name):
    build, reason = REFUSED[name]
    model = build()
    head = {id(v) for v in next(layer for layer in model.layers if layer.name == "head").variables}
    halves, said = split(model, [id(v) in head for v in model.trainable_variables])
    assert halves is None
    assert said is None if reason is None else reason in said
    # What the user should know is said when the MetaModel is made; nothing below the head is nothing to say.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keras_maml.MetaModel(model, keras_maml.ANIL(head="head"))
    assert ["runs as a whole in every inner step" in str(w.message) for w in caught] == [True] * (reason is not None)


def test_a_cut_inside_a_nested_model_is_refused():
    nested = keras.Sequential([keras.Input((3,)), body(layers.Dense(4))])
    with pytest.warns(UserWarning, match="the cut would lie inside the nested model"):
        keras_maml.MetaModel(nested, keras_maml.ANIL())


def test_a_layer_that_changes_is_cut_anew():
    # Without dropout and with it: the halves are made from a clone, which must not keep the rate of before.
    model = body(layers.Dense(4), layers.Dropout(0.9))
    meta_model = meta_model_of(model, keras_maml.ANIL(0.5, 1, head=model.layers[0]))
    assert meta_model._halves is None  # the first layer adapts
    model = body(layers.Dense(4), layers.Dense(4, name="neck"), layers.Dropout(0.9))
    meta_model = meta_model_of(model, keras_maml.ANIL(0.5, 1, head="neck"))
    x, y = episode()
    meta_model.meta_gradients(x, y)
    model.layers[2].rate = 1e-9
    gradients = meta_model.meta_gradients(x, y)[2]
    meta_model._halves = None
    for actual, expected in zip(gradients, meta_model.meta_gradients(x, y)[2], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_frozen_parts_stay_frozen_in_the_cut_model():
    model = body(layers.Dense(4, activation="tanh"), layers.Dense(4))
    model.layers[1].bias.trainable = False
    meta_model = meta_model_of(model, keras_maml.ANIL(0.5, 2))
    assert meta_model._halves is not None
    assert len(meta_model.meta_gradients(*episode())[2]) == 5


@pytest.mark.filterwarnings("ignore:.*runs as a whole in every inner step")
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_not_cut_adapt_all_the_same(name):
    # One step on the head alone moves the head, and nothing else.
    model = REFUSED[name][0]()
    meta_model = meta_model_of(model, keras_maml.Algorithm(
        SGD(0.5), keras_maml.meta_gradients.Unrolled(), 1, layers="head"
    ))
    x, y = episode((3,) if name == "a subclassed model" else model.input_shape[1:])
    assert all(np.any(g != 0) for g in meta_model.meta_gradients(x, y)[2] if g.shape.rank == 2)
    if name != "a subclassed model":
        learner = meta_model.adapt(x["support_x"][0], x["support_y"][0])
        for variable, start in zip(learner.trainable_variables, model.trainable_variables, strict=True):
            assert np.any(variable != start) == ("head" in start.path)


# --------------------------------------------------------------------------------------------------------- dropout


@keras.saving.register_keras_serializable("test_adaptation")
class Recorded(layers.Dropout):
    """Dropout that keeps the masks of its eager calls: what of each row, never zero, is still there."""

    masks = []

    def call(self, inputs, training=False):
        outputs = super().call(inputs, training=training)
        if tf.executing_eagerly():
            Recorded.masks += [tuple(row) for row in np.asarray(outputs) != 0]
        return outputs


def dropping(kind=Recorded, **kwargs):
    """On 64 ones each: that two of the masks met below are the same by chance has a probability of 1e-15."""
    return keras.Sequential([keras.Input((64,)), kind(0.5, **kwargs), layers.Dense(2)])


ONES = {"support_x": np.ones((3, 2, 64), "float32"), "support_y": np.ones((3, 2, 2), "float32")}
ONES["query_x"] = np.ones((3, 2, 64), "float32")
QUERY_Y = np.ones((3, 2, 2), "float32")


def masks_of(algorithm, batches=2, **kwargs):
    meta_model = keras_maml.MetaModel(dropping(), algorithm, "parallel", **kwargs)
    meta_model.compile(loss="mse", optimizer="sgd")
    Recorded.masks = []
    for _ in range(batches):
        meta_model.meta_gradients(ONES, QUERY_Y)
    return Recorded.masks


# Rows of a task: two supports a step, two queries; Reptile on the episode makes its steps again, on four rows.
@pytest.mark.parametrize("algorithm, rows", [
    (keras_maml.MAML(0.01, 3), 3 * 2 + 2),
    (keras_maml.Reptile(0.01, 3, data="episode"), 3 * 2 + 2 + 3 * 4),
])
def test_no_two_calls_share_a_mask(algorithm, rows):
    # Among inner steps, supports and queries, both adaptations of Reptile, tasks and outer steps.
    masks = masks_of(algorithm)
    assert len(masks) == 2 * 3 * rows
    assert len(set(masks)) == len(masks)


def test_a_step_that_is_made_again_has_the_masks_of_the_first_time():
    # Of the rows above, the 3 * 2 of the steps come twice, with the same masks: for 2 batches of 3 tasks.
    algorithm = keras_maml.Algorithm(SGD(0.01), keras_maml.meta_gradients.Unrolled(rematerialize=True), 3)
    masks = masks_of(algorithm)
    assert len(masks) == 2 * 3 * (2 * 3 * 2 + 2)
    assert sorted(collections.Counter(masks).values()) == [1] * 2 * 3 * 2 + [2] * 2 * 3 * 3 * 2


def test_what_is_logged_before_adaptation_has_masks_of_its_own():
    masks = masks_of(keras_maml.MAML(0.01, 3), log_before=True)
    assert len(masks) == 2 * 3 * (3 * 2 + 2 + 2)
    assert len(set(masks)) == len(masks)


def test_two_layers_do_not_share_masks():
    members = Recorded(0.5), layers.Lambda(tf.ones_like), Recorded(0.5), layers.Dense(2)
    model = keras.Sequential([keras.Input((64,)), *members])
    meta_model = meta_model_of(model, keras_maml.MAML(0.01, 2))
    Recorded.masks = []
    meta_model.meta_gradients(ONES, QUERY_Y)
    assert len(set(Recorded.masks)) == len(Recorded.masks) == 2 * 3 * (2 * 2 + 2)


def test_masks_are_a_function_of_the_seed():
    runs = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        runs.append(masks_of(keras_maml.MAML(0.01, 2)))
    assert runs[0] == runs[1]
    assert not set(runs[0]) & set(runs[2])


def test_masks_begin_anew_with_the_outer_step():
    # The only state that masks depend on is the number of the outer step: what a resumed run restores.
    meta_model = meta_model_of(dropping(), keras_maml.MAML(0.01, 2))
    Recorded.masks = []
    for _ in range(2):
        meta_model.outer_step.assign(5)
        meta_model.meta_gradients(ONES, QUERY_Y)
    half = len(Recorded.masks) // 2
    assert Recorded.masks[:half] == Recorded.masks[half:]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("task_mapping", ["parallel", "vectorized"])
def test_masks_differ_in_compiled_steps(task_mapping, jit_compile):
    # The predictions are the masked ones themselves, times a weight.
    dense = layers.EinsumDense("ij,j->ij", output_shape=64, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), dense])
    mapping = {"parallel": keras_maml.task_mapping.Parallel(), "vectorized": keras_maml.task_mapping.Vectorized(False)}
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.01, 1), mapping[task_mapping])
    meta_model.compile(loss="mse")
    x = {name: ONES["query_x"] for name in ONES}
    step = tf.function(lambda: meta_model.meta_gradients(x, x["query_x"])[1], autograph=False, jit_compile=jit_compile)
    masks = [tuple(row) for _ in range(2) for row in np.reshape(step(), (-1, 64)) != 0]
    assert len(masks) == 2 * 3 * 2
    assert all(a != b for a, b in itertools.combinations(masks, 2))


def test_nothing_is_dropped_at_evaluation_and_no_seed_is_written():
    meta_model = meta_model_of(dropping(), keras_maml.MAML(0.01, 2))
    meta_model.compile(loss="mse", optimizer="sgd", run_eagerly=True)
    before = [v.numpy() for v in meta_model.model.non_trainable_variables]
    Recorded.masks = []
    meta_model.predict(ONES, verbose=0)
    meta_model.evaluate(ONES, QUERY_Y, verbose=0)
    meta_model.adapt(ONES["support_x"][0], ONES["support_y"][0])
    assert Recorded.masks and all(map(all, Recorded.masks))
    meta_model.fit(ONES, QUERY_Y, verbose=0)
    assert not all(map(all, Recorded.masks))
    np.testing.assert_array_equal([v.numpy() for v in meta_model.model.non_trainable_variables], before)


def test_a_penalty_counts_once_whatever_ids_its_layers_remember():
    # Keras tells whose a loss is by the `id` of its tensor. Two activity penalties of 0.5 * 2^2 for one example and a
    # weight penalty of 0.5 * 1: 4.5, also where each layer believes that it made both.
    class Every(set):
        def __contains__(self, item):
            return True

    ones = dict(kernel_initializer="ones", use_bias=False, activity_regularizer=keras.regularizers.L2(0.5))
    one, two = layers.Dense(1, **ones), layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.5), **ones)
    pure = PureModel(keras.Sequential([keras.Input((1,)), one, two]))
    for layer in (one, two):
        layer._loss_ids = Every()
    _, penalty, _ = pure([v.value for v in pure.trainable], [], tf.constant([[2.0]]), True, "support")
    np.testing.assert_allclose(penalty, 4.5)
