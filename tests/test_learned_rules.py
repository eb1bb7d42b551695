"""Rules that own meta-learned weights: by hand, by NumPy, in whole models, saved and exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers import schedules

import keras_maml
from keras_maml.learning_rules import ALFA, SGD, Adam, LayerwiseSGD, LearnedSGD, MetaCurvature
from keras_maml.meta_gradients import FirstOrder, ParameterDifference, Unrolled


def variables_of(*shapes, dtype="float64"):
    generator = np.random.default_rng(0)
    return [keras.Variable(generator.normal(size=shape), dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.4, 3.0, 50.0])
@pytest.mark.parametrize("kind", [LearnedSGD, LayerwiseSGD])
def test_positive_rates_start_at_the_learning_rate(kind, rate, dtype, tolerance):
    # log(1 + exp(w)) = rate at w = rate + log(1 - exp(-rate))
    rule = kind(rate, positive=True)
    rule.build(variables_of((2, 3), (3,), dtype=dtype), 4)
    shapes = [(4,), (4,)] if kind is LayerwiseSGD else [(2, 3), (3,)]
    for learned, shape in zip(rule.learned_rates(), shapes, strict=True):
        np.testing.assert_allclose(learned, np.full(shape, rate), rtol=tolerance)


def test_positive_rates_stay_positive():
    # softplus(0) = log 2, softplus(-20) = 2.06115e-9; without `positive` the weight is the rate.
    rule, free = (LayerwiseSGD(0.1, positive=positive) for positive in (True, False))
    for each in (rule, free):
        each.build([keras.Variable([1.0])], 2)
        each.rates[0].assign([0.0, -20.0])
    np.testing.assert_allclose(rule.learned_rates()[0], [np.log(2), 2.06115e-9], rtol=1e-5)
    np.testing.assert_array_equal(free.learned_rates()[0], [0.0, -20.0])
    # 1 - log(2) * 2
    ((moved,), _) = rule.step([tf.constant([1.0])], [tf.constant([2.0])], (), 0)
    np.testing.assert_allclose(moved, [1 - 2 * np.log(2)], rtol=1e-6)


def test_curvature_starts_as_gradient_descent():
    variables = variables_of((2, 2, 3, 4), (5, 4), (4,), ())
    rule = MetaCurvature(0.5, largest_matrix=4)
    rule.build(variables, 1)
    # The window of a convolution is one mode; the axis of 5 is larger than 4, and has a diagonal.
    shapes = [[(4, 4), (3, 3), (4, 4)], [(5,), (4, 4)], [(4, 4)], [(1, 1)]]
    assert [[tuple(m.shape) for m in each] for each in rule.curvatures] == shapes
    assert len(rule.trainable_variables) == 7
    params = [tf.convert_to_tensor(v) for v in variables]
    moved, _ = rule.step(params, params, (), 0)
    for p, m in zip(params, moved, strict=True):
        np.testing.assert_allclose(m, p / 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "modes", "formula"),
    [
        ((4,), (4,), "ia,a->i"),
        ((5, 4), (5, 4), "ia,jb,ab->ij"),
        ((2, 3, 4), (2, 3, 4), "ia,jb,kc,abc->ijk"),
        ((2, 2, 3, 4), (4, 3, 4), "ia,jb,kc,abc->ijk"),
        ((2, 1, 2, 3, 4), (4, 3, 4), "ia,jb,kc,abc->ijk"),
        ((), (1,), "ia,a->i"),
    ],
)
@pytest.mark.parametrize("largest", [1024, 3])
def test_curvature_is_a_product_in_every_mode(shape, modes, formula, largest):
    rule, generator = MetaCurvature(0.1, largest_matrix=largest), np.random.default_rng(0)
    rule.build(variables_of(shape), 1)
    (matrices,) = rule.curvatures
    for matrix in matrices:
        matrix.assign(generator.normal(size=matrix.shape))
    full = [m.numpy() if len(m.shape) == 2 else np.diag(m.numpy()) for m in matrices]
    assert [len(m) for m in full] == list(modes)
    gradient = generator.normal(size=shape)
    expected = -0.1 * np.einsum(formula, *full, gradient.reshape(modes)).reshape(shape)
    ((moved,), _) = rule.step([tf.zeros(shape, tf.float64)], [tf.constant(gradient)], (), 0)
    np.testing.assert_allclose(moved, expected, rtol=1e-10, atol=1e-14)


def test_alfa_by_hand():
    # One parameter, (1, 3) with the gradient (2, 4): tau = (2, 3). The hidden layer gives relu(2 - 1, 3 - 5) = (1, 0),
    # the last one a = 1 + 0.2 * 1 = 1.2 and b = 1 + 0.6 * 1 = 1.6.
    # Row 0: 0.5 * 1.6 * p - 0.1 * 1.2 * g = (0.8 - 0.24, 2.4 - 0.48).
    # Row 1, also beyond: 1 * 1.6 * p - 0.2 * 1.2 * g = (1.6 - 0.48, 4.8 - 0.96).
    rule = ALFA(0.1)
    rule.build([keras.Variable([1.0, 3.0])], 2)
    np.testing.assert_allclose(rule.rates, [[0.1], [0.1]])
    np.testing.assert_allclose(rule.keeps, [[1.0], [1.0]])
    rule.rates.assign([[0.1], [0.2]])
    rule.keeps.assign([[0.5], [1.0]])
    rule.hidden_kernel.assign(np.eye(2))
    rule.hidden_bias.assign([-1.0, -5.0])
    rule.kernel.assign([[0.2, 7.0], [0.6, 7.0]])
    rule.bias.assign([1.0, 1.0])
    params, gradients = [tf.constant([1.0, 3.0])], [tf.constant([2.0, 4.0])]
    for index, expected in ((0, (0.56, 1.92)), (1, (1.12, 3.84)), (2, (1.12, 3.84)), (tf.constant(2), (1.12, 3.84))):
        np.testing.assert_allclose(rule.step(params, gradients, (), index)[0][0], expected, rtol=1e-6)


def test_alfa_takes_no_account_of_classes_without_supports():
    # Their bias is -1e9, or -3e4 in float16: the means are 3/2 and of gradients 1.
    rule = ALFA(0.1, seed=1)
    rule.build([keras.Variable([1.0, 3.0])], 1)
    gradients = [tf.constant([2.0, 0.0])]
    expected = rule.factors([tf.constant([3.0, 0.0])], gradients)
    for lowest in (-1e9, -3e4):
        np.testing.assert_allclose(rule.factors([tf.constant([3.0, lowest])], gradients), expected, rtol=1e-6)


def test_alfa_starts_next_to_gradient_descent():
    # The random part of a and b is at most 3 standard deviations of 0.001 for each hidden unit, times a hidden unit.
    variables = variables_of((5, 4), (4,))
    params = [tf.convert_to_tensor(v) for v in variables]
    rule = ALFA(0.5, seed=3)
    rule.build(variables, 1)
    moved, _ = rule.step(params, params, (), 0)
    for p, m in zip(params, moved, strict=True):
        np.testing.assert_allclose(m, p / 2, rtol=0.02)
    # The net is that of the seed.
    again, other = (ALFA(0.5, seed=seed) for seed in (3, 4))
    for each in (again, other):
        each.build(variables, 1)
    np.testing.assert_array_equal(again.hidden_kernel, rule.hidden_kernel)
    assert np.abs(other.kernel.numpy() - rule.kernel.numpy()).max() > 1e-5


def model_and_episodes():
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    first = keras.layers.Dense(4, "tanh")
    model = keras.Sequential([keras.Input((3,)), first, keras.layers.Dense(2)])
    x = {
        name: generator.normal(size=(2, 6, size)).astype("float32")
        for name, size in (("support_x", 3), ("support_y", 2), ("query_x", 3))
    }
    return model, x, generator.normal(size=(2, 6, 2)).astype("float32")


RULES = {
    "softplus": LearnedSGD(0.2, positive=True),
    "meta-curvature": MetaCurvature(schedules.CosineDecay(0.2, 20), largest_matrix=3),
    "alfa": ALFA(0.2, seed=0),
    "adam": Adam(schedules.ExponentialDecay(0.05, 3, 0.5)),
}


@pytest.mark.parametrize("name", RULES)
def test_learning_saving_and_loading(name, tmp_path):
    # Twelve steps run in a loop. Every meta-learned variable gets a gradient from the first outer step on, and moves.
    model, x, y = model_and_episodes()
    algorithm = keras_maml.Algorithm(RULES[name], Unrolled(), 12, evaluation_steps=3)
    meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
    meta_model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [v.numpy() for v in meta_model.trainable_variables]
    assert len(before) == 4 + len(meta_model.rule.trainable_variables)
    meta_model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    for variable, value in zip(meta_model.trainable_variables, before, strict=True):
        assert np.isfinite(variable.numpy()).all() and np.abs(variable.numpy() - value).max() > 0, variable.path
    expected = meta_model.predict(x, verbose=0)
    meta_model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.rule) is type(RULES[name]) and again.rule.get_config() == meta_model.rule.get_config()
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    learner = again.adapt(x["support_x"][0], x["support_y"][0])
    np.testing.assert_allclose(learner(x["query_x"][0]), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["meta-curvature", "alfa", "adam"])
def test_export(name, tmp_path):
    model, x, _ = model_and_episodes()
    algorithm = keras_maml.Algorithm(RULES[name], Unrolled(), 2, evaluation_steps=12)
    meta_model = keras_maml.MetaModel(model, algorithm, "parallel")
    meta_model.compile(loss="mse")
    expected = meta_model.predict(x, verbose=0)
    meta_model.export(str(tmp_path / "export"))
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    (served,) = serve(**{k: tf.constant(v[1]) for k, v in x.items()}).values()
    np.testing.assert_allclose(served, expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [MetaCurvature(0.2), ALFA(0.2, seed=0)], ids=["meta-curvature", "alfa"])
def test_first_order_learns_the_rule_and_reptile_refuses_it(rule):
    model, x, y = model_and_episodes()
    meta_model = keras_maml.MetaModel(model, keras_maml.Algorithm(rule, FirstOrder(), 2), "parallel")
    meta_model.compile(loss="mse")
    for gradient in meta_model.meta_gradients(x, y)[2]:
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    with pytest.raises(ValueError, match="`ParameterDifference` gives no gradient for learned"):
        keras_maml.Algorithm(rule, ParameterDifference(), 2)


def test_weights_of_two_precisions():
    # What a net of one precision says moves weights of another.
    variables = [keras.Variable([1.0, 2.0], dtype="float64"), keras.Variable([3.0], dtype="float32")]
    params = [tf.convert_to_tensor(v) for v in variables]
    for rule in (ALFA(0.1, seed=0), MetaCurvature(0.1), Adam(0.1), SGD(schedules.CosineDecay(0.1, 3))):
        rule.build(variables, 2)
        moved, _ = rule.step(params, params, rule.init(params), 0)
        assert [m.dtype for m in moved] == [tf.float64, tf.float32]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedSGD(positive="softplus"), "`positive` must be `True` or `False`. Received: positive="),
        (lambda: MetaCurvature(largest_matrix=-1), "`largest_matrix` must be an integer of at least 0"),
        (lambda: MetaCurvature(largest_matrix=8.0), "Received: largest_matrix=8.0"),
        (lambda: ALFA(seed="a"), "`seed` must be an integer or `None`. Received: seed='a'"),
        (lambda: ALFA(seed=True), "Received: seed=True"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
