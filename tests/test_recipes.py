"""Recipes: sizes of the published nets counted by hand, factors of the reference's loss, one step of each."""

import keras
import numpy as np
import pytest

import keras_maml
from keras_maml import recipes
from keras_maml.recipes import networks

CLASSIFICATION = (
    recipes.omniglot_5way_1shot_maml,
    recipes.omniglot_20way_5shot_maml,
    recipes.omniglot_5way_1shot_maml_plus_plus,
    recipes.mini_imagenet_5way_1shot_maml,
    recipes.omniglot_1shot_prototypical,
    recipes.omniglot_5way_1shot_reptile,
)


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_sizes_of_nets_counted_by_hand():
    # A convolution of 3 x 3 from a to b channels has (9 a + 1) b weights, a normalisation a shift for each channel and,
    # if it has one, a factor.
    blocks = 10 * 64 + 3 * (9 * 64 + 1) * 64
    assert trainable(recipes.omniglot_5way_1shot_maml().model) == blocks + 4 * 64 + 65 * 5 == 112_005
    assert trainable(recipes.omniglot_20way_1shot_maml().model) == blocks + 4 * 64 + 65 * 20
    # 84 pixels halve to 42, 21, 10 and 5.
    small = 28 * 32 + 3 * (9 * 32 + 1) * 32
    assert trainable(recipes.mini_imagenet_5way_5shot_maml().model) == small + 4 * 32 + (25 * 32 + 1) * 5 == 32_773
    # 28 halve to 14, 7, 3 and 1, or by strides to 14, 7, 4 and 2. 111,936 is the number given for this encoder.
    assert trainable(recipes.omniglot_5shot_prototypical().model) - 65 * 60 == blocks + 8 * 64 == 111_936
    assert trainable(recipes.omniglot_5way_1shot_reptile().model) == blocks + 8 * 64 + (4 * 64 + 1) * 5
    assert trainable(recipes.sinusoid_maml().model) == 2 * 40 + 41 * 40 + 41 == 1761


@pytest.mark.parametrize(
    ("recipe", "rate", "steps"),
    [
        (recipes.omniglot_5way_1shot_maml, 2.0, (1, 3)),
        (recipes.omniglot_5way_5shot_maml, 2.0, (1, 3)),
        (recipes.omniglot_20way_1shot_maml, 2.0, (5, 5)),
        (recipes.omniglot_20way_5shot_maml, 2.0, (5, 5)),
        (recipes.mini_imagenet_5way_1shot_maml, 0.05, (5, 10)),
        (recipes.mini_imagenet_5way_5shot_maml, 0.05, (5, 10)),
    ],
)
def test_rates_are_for_a_mean_loss(recipe, rate, steps):
    recipe = recipe()
    assert recipe.algorithm.rule.learning_rate == pytest.approx(rate)
    assert (recipe.algorithm.steps, recipe.algorithm.evaluation_steps) == steps
    # Over the queries the reference adds up ways * queries losses, each divided by the shots.
    sizes = recipe.episodes
    factor = sizes["ways"] * sizes["queries"] / sizes["shots"]
    optimizer = recipe.compile["optimizer"]
    assert optimizer.epsilon * factor == pytest.approx(1e-8)
    if recipe.data:
        assert optimizer.clipvalue is None
    else:
        assert optimizer.clipvalue * factor == pytest.approx(10)


def test_all_six_ideas_of_maml_plus_plus_are_in_its_recipe():
    recipe = recipes.omniglot_20way_1shot_maml_plus_plus()
    # Four blocks of six rows of factors and shifts in place of one.
    blocks = 10 * 64 + 3 * (9 * 64 + 1) * 64
    assert trainable(recipe.model) == blocks + 4 * 2 * 6 * 64 + 65 * 20
    assert [layer.moving_mean.shape for layer in recipe.model.layers if "normalization" in layer.name] == [(6, 64)] * 4
    assert recipe.data["rotated"] == ("train",)
    layer = recipe.model.get_layer("normalization_1")
    assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)  # what PyTorch calls 0.1 is kept of the new, not of the old
    assert all(layer.negative_slope == 0.01 for layer in recipe.model.layers if type(layer) is keras.layers.ReLU)
    estimator, rate = recipe.algorithm.meta_gradient, recipe.compile["optimizer"]._learning_rate
    assert (estimator.multi_step_share, estimator.first_order_share) == (0.1, 0.5)
    assert type(recipe.algorithm.rule) is keras_maml.learning_rules.LayerwiseSGD
    np.testing.assert_allclose([rate(step) for step in (0, recipe.iterations)], [1e-3, 1e-5], rtol=1e-3)


def test_epsilon_and_clip_make_up_for_the_factor():
    # The step of Adam on the loss of the reference, 75 times ours, by the formulas: g / (|g| + 1e-8) in the first step,
    # as both moments are corrected to g and g^2; Keras and TensorFlow 1 add epsilon before the correction, so that it
    # counts 1 / sqrt(1 - 0.999) times. Gradients beyond 10 are clipped.
    gradient = np.array([1e-9, 1e-6, 0.1, 3.0], "float32")
    optimizer = recipes.mini_imagenet_5way_1shot_maml().compile["optimizer"]
    variable = keras.Variable(np.zeros(4, "float32"))
    optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    summed = np.clip(75 * gradient.astype("float64"), -10, 10)
    expected = -1e-3 * summed / (np.abs(summed) + 1e-8 / np.sqrt(1 - 0.999))
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("recipe", CLASSIFICATION)
def test_trains_a_step_on_made_data(recipe):
    recipe = recipe()
    sizes = {**recipe.episodes, "tasks": 1}
    random = np.random.default_rng(0)
    classes, each = sizes["ways"], sizes["shots"] + sizes["queries"]
    images = random.integers(0, 256, (classes * each, *recipe.model.input_shape[1:]), "uint8")
    episodes = keras_maml.episodes.from_arrays(images, np.repeat(np.arange(classes), each), seed=0, **sizes)
    meta_model = keras_maml.MetaModel(recipe.model, recipe.algorithm)
    meta_model.compile(**recipe.compile, run_eagerly=True)
    before = [v.numpy() for v in meta_model.trainable_variables]
    assert np.isfinite(meta_model.train_on_batch(*next(iter(episodes)))[0])
    moved = [np.abs(v.numpy() - b).max() for v, b in zip(meta_model.trainable_variables, before, strict=True)]
    assert all(np.isfinite(moved))
    # Normalisation takes the biases of convolutions, (filters,), away again: only rounding moves them, and their rates.
    adapting = [v for v, adapts in zip(recipe.model.trainable_variables, meta_model.mask, strict=True) if adapts]
    of_rates = dict(zip(map(id, getattr(meta_model.rule, "rates", [])), adapting, strict=False))
    paths = [of_rates.get(id(v), v).path for v in meta_model.trainable_variables]
    biases = ["convolution" in path and path.endswith("bias") for path in paths]
    assert all(size > 0 for size, is_bias in zip(moved, biases, strict=True) if not is_bias)


def test_what_adapts_in_the_reference():
    recipe = recipes.omniglot_5way_1shot_maml()
    meta_model = keras_maml.MetaModel(recipe.model, recipe.algorithm)
    fixed = [v.path for v, adapts in zip(recipe.model.trainable_variables, meta_model.mask, strict=True) if not adapts]
    assert [path.rpartition("/")[2] for path in fixed] == ["beta"] * 4


def test_sinusoid_learns_a_step():
    recipe = recipes.sinusoid_maml()
    meta_model = keras_maml.MetaModel(recipe.model, recipe.algorithm)
    meta_model.compile(**recipe.compile, run_eagerly=True)
    episodes = keras_maml.datasets.sinusoid(seed=0, **{**recipe.episodes, "tasks": 2})
    assert np.isfinite(meta_model.train_on_batch(*next(iter(episodes))))


def test_every_call_makes_its_own():
    one, other = recipes.sinusoid_maml(), recipes.sinusoid_maml()
    assert one.model is not other.model and one.compile["optimizer"] is not other.compile["optimizer"]
    kernels = [layer.kernel.numpy() for layer in one.model.layers]
    assert np.abs(kernels[1]).max() <= 0.02 + 1e-6  # truncated at two standard deviations of 0.01
    assert not np.array_equal(kernels[0][0], kernels[2][:, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: networks.conv4((8, 8, 1), pooled=True), "height.*at least 16.*height=8"),
        (lambda: networks.conv4((28, 28)), "height, width, channels"),
        (lambda: networks.conv4(filters=0), "filters=0"),
        (lambda: networks.conv4(pooled="no"), "pooled='no'"),
        (lambda: networks.conv4(ways=0), "ways=0"),
        (lambda: networks.curve_net(0), "width=0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
