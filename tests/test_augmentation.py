import keras
import numpy as np
import pytest
import tensorflow as tf
from chi_square import check_uniform

from keras_maml import datasets, episodes

# Corner images: which corner holds the example's number tells how it was turned, 2 x 2 pixels.
COUNT = 40
IMAGES = np.zeros((COUNT, 2, 2, 1), "uint8")
IMAGES[:, 0, 0, 0] = np.arange(1, COUNT + 1)
LABELS = np.arange(COUNT) % 8
CORNERS = np.array([[0, 3], [1, 2]])  # the corner of the number after 0, 1, 2, 3 quarter turns against the clock


def turns_of(images):
    """Numbers of examples, and quarter turns, of images `(..., 2, 2, 1)`."""
    flat = np.asarray(images)[..., 0].reshape(*images.shape[:-3], 4)
    return flat.max(-1), CORNERS.ravel()[flat.argmax(-1)]


class TestRotateClasses:
    def test_every_turn_is_a_class_of_its_own(self):
        images, labels = episodes.rotate_classes(IMAGES, LABELS * 10, turns=(0, 1, 3))
        numbers, turns = turns_of(images)
        np.testing.assert_array_equal(numbers, np.tile(np.arange(1, COUNT + 1), 3))
        np.testing.assert_array_equal(turns, np.repeat([0, 1, 3], COUNT))
        np.testing.assert_array_equal(labels, np.tile(LABELS, 3) + 8 * turns)

    def test_the_turns_of_an_episode_are_independent_for_each_class(self):
        # A library that draws one turn for the whole task, or none at all, fails every line of this test.
        dataset = episodes.from_arrays(*episodes.rotate_classes(IMAGES, LABELS), 2, 1, 2, tasks=100, seed=0, batches=60)
        pairs = []
        for x, y in dataset:
            support, query = turns_of(x["support_x"])[1], turns_of(x["query_x"])[1]
            np.testing.assert_array_equal(query, np.take_along_axis(support, y.numpy(), 1))
            classes = LABELS[turns_of(x["support_x"])[0] - 1]
            pairs.append(support[classes[:, 0] != classes[:, 1]])
        pairs = np.concatenate(pairs)
        check_uniform(np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16))

    def test_names_and_oblong_images(self):
        images, labels = episodes.rotate_classes(np.zeros((3, 2, 5, 1)), ["b", "a", "b"], turns=(0, 2))
        assert images.shape == (6, 2, 5, 1)
        np.testing.assert_array_equal(labels, [1, 0, 1, 5, 4, 5])  # class + 2 classes * turns

    @pytest.mark.parametrize(
        "images, turns, message",
        [
            (np.zeros((COUNT, 2, 5, 1)), (0, 1), r"A quarter turn of 2 x 5 pixels.*turns=\(0, 2\)"),
            (IMAGES, (0, 4), "different quarter turns out of 0, 1, 2, 3"),
            (IMAGES, (1, 1), "different quarter turns"),
            (IMAGES, (), "different quarter turns"),
            (IMAGES[:3], (0,), r"\(40, height, width, channels\), one a label. Received: \(3, 2"),
        ],
    )
    def test_errors(self, images, turns, message):
        with pytest.raises(ValueError, match=message):
            episodes.rotate_classes(images, LABELS, turns)


@keras.saving.register_keras_serializable("tests")
class RandomTurn(keras.layers.Layer):
    """Turns every image by a random number of quarter turns."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)

    def call(self, images):
        count = tf.shape(images)[0]
        drawn = keras.random.randint((count,), 0, 4, seed=self.generator)
        turned = tf.stack([tf.image.rot90(images, k) for k in range(4)], 1)
        return tf.gather(turned, drawn, batch_dims=1)


def source(**arguments):
    arguments = {"ways": 3, "shots": 2, "queries": 2, "tasks": 50, "seed": 0, "batches": 20} | arguments
    return episodes.from_arrays(IMAGES, LABELS, **arguments)


def read(dataset):
    """Turns of supports and queries `(T, S)`, `(T, Q)`, and labels, of all episodes."""
    parts = [(turns_of(x["support_x"])[1], turns_of(x["query_x"])[1]) for x, _ in dataset]
    return (np.concatenate(part) for part in zip(*parts, strict=True))


class TestAugment:
    def test_every_example_by_its_own_numbers(self):
        support, query = read(episodes.augment(source(), RandomTurn()))
        for a, b in ((support[:, 0], support[:, 1]), (support[:, 0], query[:, 0]), (support[:-1, 0], support[1:, 0])):
            check_uniform(np.bincount(a * 4 + b, minlength=16))

    def test_every_class_by_one_number(self):
        # A turn that is the same for the whole task, or differs within a class, fails.
        support, query = read(episodes.augment(source(), RandomTurn(), share="class"))
        np.testing.assert_array_equal(support[:, ::2], support[:, 1::2])
        np.testing.assert_array_equal(support, query)
        check_uniform(np.bincount(support[:, 0] * 16 + support[:, 2] * 4 + support[:, 4], minlength=64))

    def test_every_task_by_one_number(self):
        support, query = read(episodes.augment(source(), RandomTurn(), share="task"))
        assert (support == support[:, :1]).all() and (query == support[:, :1]).all()
        check_uniform(np.bincount(support[:, 0]))
        check_uniform(np.bincount(support[:-1, 0] * 4 + support[1:, 0], minlength=16))

    @pytest.mark.parametrize("share", ["example", "class", "task"])
    def test_one_part_only(self, share):
        for part, other in (("support", 1), ("query", 0)):
            turns = list(read(episodes.augment(source(batches=2), RandomTurn(), part=part, share=share)))
            assert (turns[other] == 0).all() and len(set(turns[1 - other].ravel())) == 4

    @pytest.mark.parametrize("share", ["example", "class"])
    def test_an_episode_stays_a_function_of_seed_and_index(self, share):
        def augmented(**arguments):
            dataset = episodes.augment(source(**arguments), keras.layers.RandomFlip(seed=5), share=share)
            return [np.concatenate([e[0][part] for e in dataset]) for part in ("support_x", "query_x")]

        whole = augmented(tasks=6, batches=4)
        for part in (augmented(tasks=6, batches=4), augmented(tasks=8, batches=3)):
            np.testing.assert_array_equal(part[0], whole[0])
            np.testing.assert_array_equal(part[1], whole[1])
        np.testing.assert_array_equal(augmented(tasks=6, batches=1, start=12)[0], whole[0][12:18])
        assert not np.array_equal(augmented(tasks=6, batches=4, seed=1)[0], whole[0])

    def test_the_layer_is_left_as_it_was(self):
        layer = RandomTurn()
        before = layer.generator.state.numpy()
        next(iter(episodes.augment(source(), layer)))
        np.testing.assert_array_equal(layer.generator.state, before)

    def test_calls_add_up_with_numbers_of_their_own(self):
        once = episodes.augment(source(), RandomTurn(), share="task")
        twice = episodes.augment(once, RandomTurn(), share="task")
        (first, _), (sum_of_both, _) = read(once), read(twice)
        second = (sum_of_both - first)[:, 0] % 4
        check_uniform(np.bincount(first[:, 0] * 4 + second, minlength=16))

    def test_integers_stay_integers_and_are_rounded(self):
        dataset = episodes.augment(source(), keras.layers.Rescaling(1.9))
        x, _ = next(iter(dataset))
        assert x["query_x"].dtype == tf.uint8
        plain, _ = next(iter(source()))
        expected = np.round(plain["query_x"].numpy() * np.float32(1.9)).astype("uint8")
        np.testing.assert_array_equal(x["query_x"], expected)

    def test_shapes_stay_static_and_may_change(self):
        for share in ("example", "class"):
            dataset = episodes.augment(source(), keras.layers.RandomCrop(1, 1), share=share)
            assert dataset.element_spec[0]["support_x"].shape == (50, 6, 1, 1, 1)
            assert next(iter(dataset))[0]["support_x"].shape == (50, 6, 1, 1, 1)

    def test_padded_episodes_and_mixtures_are_augmented_too(self):
        padded = episodes.augment(source(ways=(2, 3)), RandomTurn(), share="class")
        x, _, weight = next(iter(padded))
        assert x["support_weight"].shape == weight.shape == (50, 6)
        turned = {
            name: episodes.augment(source(seed=None, batches=None), RandomTurn(), share="task") for name in ("a", "b")
        }
        once = episodes.mixture(turned, seed=0, batches=20)
        twice = episodes.augment(once, RandomTurn(), share="task")
        (first, _), (sum_of_both, _) = read(once), read(twice)
        second = (sum_of_both - first)[:, 0] % 4
        check_uniform(np.bincount(first[:, 0] * 4 + second, minlength=16))

    def test_curves_have_no_classes_to_share_by(self):
        waves = datasets.sinusoid(shots=3, queries=4, tasks=5, seed=0, batches=1)
        doubled = episodes.augment(waves, keras.layers.Rescaling(2.0), share="task")
        for (x, _), (expected, _) in zip(doubled, waves, strict=True):
            np.testing.assert_allclose(x["query_x"], 2 * expected["query_x"])
        with pytest.raises(ValueError, match="needs class labels .* float32 labels of shape"):
            episodes.augment(waves, keras.layers.Rescaling(2.0), share="class")

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"part": "queries"}, "Expected part in"),
            ({"share": "batch"}, "and share in"),
            ({"layer": tf.image.flip_left_right}, "`layer` must be a `keras.layers.Layer`"),
            ({"layer": keras.layers.Dense(1)}, "has other variables: .*kernel"),
            ({"layer": keras.layers.RandomCrop(1, 1), "part": "support"}, "Use `part=\"both\"`"),
            ({"dataset": source().prefetch(1)}, "before `map`, `prefetch`"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            episodes.augment(**({"dataset": source(), "layer": RandomTurn()} | arguments))


def test_a_layer_that_no_seed_can_repeat_is_refused():
    images = np.zeros((COUNT, 8, 8, 3), "uint8")
    dataset = episodes.from_arrays(images, LABELS, 2, 1, 1, tasks=2, seed=0)
    with pytest.raises(ValueError, match="draws from Python's global generator"):
        episodes.augment(dataset, keras.layers.AugMix(seed=1))
    next(iter(episodes.augment(dataset, keras.layers.RandAugment(seed=1))))


def test_a_layer_that_takes_no_such_examples_is_refused():
    images = np.zeros((COUNT, 8, 8, 3), "uint8")
    dataset = episodes.from_arrays(images, LABELS, 2, 1, 1, tasks=2, seed=0)
    with pytest.raises(ValueError, match="does not take these examples"):
        episodes.augment(dataset, keras.layers.RandomContrast(0.5))
    several = episodes.from_arrays({"a": images, "b": images}, LABELS, 2, 1, 1, tasks=2, seed=0)
    with pytest.raises(ValueError, match="does not take these examples"):
        episodes.augment(several, keras.layers.RandomFlip())
    with pytest.raises(ValueError, match="must be of episodes"):
        episodes.augment(episodes.from_function(lambda seed, index: index, tasks=2), keras.layers.RandomFlip())


def test_padding_stays_zeros():
    dataset = episodes.from_arrays(IMAGES + 1, LABELS, (2, 4), (1, 3), 1, tasks=8, seed=0)
    x, _, weight = next(iter(episodes.augment(dataset, keras.layers.Rescaling(1.0, offset=5.0))))
    for part, rows in (("support", x["support_weight"]), ("query", weight)):
        assert (rows.numpy() == 0).any()
        assert not x[f"{part}_x"].numpy()[rows.numpy() == 0].any()
        assert (x[f"{part}_x"].numpy()[rows.numpy() == 1] >= 6).all()
