import functools
import os

import numpy as np
import pytest

from keras_maml import episodes
from keras_maml.datasets import omniglot

# Made-up drawings: 8 characters in the first set and 4 in the second, 20 drawings of each.
FIRST, SECOND = (0, 1, 5, 9, 100, 900, 1500, 1622), (2, 3, 1000, 1621)


def draw(character, number):
    """Black on white; the upper left corner tells the way up, other pixels tell whose it is."""
    image = np.full((4, 4, 3), 255, "uint8")
    image[0, 0] = 0
    image[1:3, 1:3, :] = np.array([[character // 10, character % 10], [number, 7]])[..., None]
    return image


def read_made_up(name, split, image_size, data_dir, download):
    characters = {"train": FIRST, "test": SECOND}[split]
    labels = np.repeat(characters, 20)
    images = [draw(label, i % 20) for i, label in enumerate(labels)]
    return np.stack(images), labels


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(episodes, "read_tfds", read_made_up)


def expected_image(label, number):
    """Ink high on low, one channel, turned against the clock `label // 1623` times."""
    image = 255 - draw(label % 1623, number)[..., :1]
    for _ in range(label // 1623):
        image = np.stack([image[:, -1 - row] for row in range(4)])
    return image


@pytest.mark.usefixtures("made_up")
class TestSplits:
    def test_every_character_is_in_one_split(self):
        splits = omniglot(split=(6, 2, 4))
        characters = {name: set(labels % 1623) for name, (_, labels) in splits.items()}
        assert [len(part) for part in characters.values()] == [6, 2, 4]
        assert set.union(*characters.values()) == {*FIRST, *SECOND}  # 6 + 2 + 4: so none is in two

    def test_the_seed_decides_which(self):
        def characters(seed):
            return set(omniglot(split=(6, 2, 4), seed=seed)["train"][1] % 1623)

        assert characters(1) == characters(1)
        # C(12, 6) = 924 sets: 20 seeds give one and the same once in 924^19.
        assert len({frozenset(characters(seed)) for seed in range(20)}) > 1

    def test_a_split_of_no_characters_is_left_out(self):
        assert list(omniglot(split=(8, 0, 4))) == ["train", "test"]

    def test_original(self):
        splits = omniglot(split="original", rotated=())
        assert {name: set(labels) for name, (_, labels) in splits.items()} == {
            "train": set(FIRST),
            "test": set(SECOND),
        }

    @pytest.mark.parametrize("rotated", [("train",), (), ("validation", "test")])
    def test_rotated_splits_have_four_classes_a_character(self, rotated):
        for name, (images, labels) in omniglot(split=(6, 2, 4), rotated=rotated).items():
            turns, drawings = np.unique(labels // 1623, return_counts=True)
            characters = {"train": 6, "validation": 2, "test": 4}[name]
            assert list(turns) == ([0, 1, 2, 3] if name in rotated else [0])
            assert set(drawings) == {characters * 20}
            assert images.shape == (len(labels), 4, 4, 1) and images.dtype == np.uint8

    def test_every_class_is_turned_by_its_own_angle(self):
        images, labels = omniglot(split=(12, 0, 0))["train"]
        for label in np.unique(labels):
            expected = [expected_image(label, number) for number in range(20)]
            np.testing.assert_array_equal(images[labels == label], expected)

    def test_classes_of_one_task_are_turned_differently(self):
        images, labels = omniglot(split=(8, 2, 2))["train"]
        dataset = episodes.from_arrays(images, labels, 5, 1, 3, tasks=200, seed=0)
        x, _ = next(iter(dataset))
        seen = np.concatenate([x["support_x"], x["query_x"]], 1)[..., 0]
        # The marked corner, walking against the clock from the upper left one.
        corners = np.stack([seen[:, :, i, j] for i, j in ((0, 0), (-1, 0), (-1, -1), (0, -1))], -1)
        assert ((corners == 255).sum(-1) == 1).all()
        turns = corners.argmax(-1)
        support, query = turns[:, :5], turns[:, 5:].reshape(200, 5, 3)
        np.testing.assert_array_equal(query, np.repeat(support[..., None], 3, axis=-1))
        # 5 of 32 classes in one orientation: 4 * C(8, 5) / C(32, 5) = 0.0011 of the tasks.
        alike = (support == support[:, :1]).all(1).sum()
        assert alike < 10  # 0.2 expected; 10 or more with a probability below 1e-13

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"split": "background"}, "`split` must be 'original', .*split='background'"),
            ({"split": (1200, 423)}, "`split` must be 'original', 'small1', 'small2' or"),
            ({"split": (1200, 300, 124)}, "at most 1623 characters together"),
            ({"split": (1200, -1, 424)}, r"`split\[1\]` must be an integer of at least 0"),
            ({"rotated": "train"}, "`rotated` must be a sequence of names.*rotated='train'"),
            ({"rotated": ("valid",)}, r"`rotated` must be .*rotated=\('valid',\)"),
            ({"rotated": ("validation",), "split": "original"}, "names out of .'train', 'test'.;?"),
            ({"image_size": 0}, "`image_size` must be an integer of at least 1"),
            ({"seed": None}, "`seed` must be an integer of at least 0. Received: seed=None"),
        ],
    )
    def test_errors_say_what_came(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            omniglot(**arguments)


@pytest.fixture(scope="module")
def read_real():
    directory = os.environ.get("KERAS_MAML_DATA")
    if not directory or not os.path.isdir(os.path.join(directory, "omniglot", "3.0.0")):
        pytest.skip("KERAS_MAML_DATA names no directory that holds omniglot/3.0.0")
    pytest.importorskip("tensorflow_datasets")
    return directory, functools.cache(episodes.read_tfds)  # reading takes seconds


@pytest.fixture
def data_dir(read_real, monkeypatch):
    monkeypatch.setattr(episodes, "read_tfds", read_real[1])
    return read_real[0]


class TestDrawings:
    def test_the_default_split(self, data_dir):
        splits = omniglot(data_dir, download=False)
        sizes = {"train": (1100, 4), "validation": (100, 1), "test": (423, 1)}
        for name, (characters, turns) in sizes.items():
            images, labels = splits[name]
            assert images.shape == (characters * turns * 20, 28, 28, 1)
            assert images.dtype == np.uint8
            classes, counts = np.unique(labels, return_counts=True)
            assert len(classes) == characters * turns and set(counts) == {20}
            assert len(set(classes % 1623)) == characters
        parts = [set(labels % 1623) for _, labels in splits.values()]
        assert set.union(*parts) == set(range(1623))

    def test_the_original_split(self, data_dir):
        splits = omniglot(data_dir, "original", rotated=("train", "test"), download=False)
        sizes = {name: len(np.unique(labels)) for name, (_, labels) in splits.items()}
        assert sizes == {"train": 4 * 964, "test": 4 * 659}

    @pytest.mark.parametrize("name, characters", [("small1", 136), ("small2", 156)])
    def test_the_small_splits(self, data_dir, name, characters):
        # Five alphabets each; their counts of characters are those of the set's own README.
        splits = omniglot(data_dir, name, rotated=(), download=False, alphabets=True)
        assert len(np.unique(splits["train"][1])) == characters
        assert len(np.unique(splits["train"][2])) == 5 and len(np.unique(splits["test"][2])) == 20
        assert not set(splits["train"][2]) & set(splits["test"][2])

    def test_alphabets_go_with_their_characters(self, data_dir):
        splits = omniglot(data_dir, (50, 0, 20), download=False, alphabets=True)
        plain = omniglot(data_dir, (50, 0, 20), download=False)
        for name, (images, labels, alphabets) in splits.items():
            np.testing.assert_array_equal(images, plain[name][0])
            np.testing.assert_array_equal(labels, plain[name][1])
            # A character has one alphabet, and its turned copies are of the alphabet turned as they are.
            pairs = np.unique(np.stack([labels, alphabets]), axis=1)
            assert pairs.shape[1] == len(np.unique(labels))
            np.testing.assert_array_equal(alphabets // 50, labels // 1623)
            of = {label: alphabet for label, alphabet in pairs.T}
            assert all(of[label % 1623] == alphabet % 50 for label, alphabet in of.items())

    def test_drawings_are_shrunk_as_by_pillow_and_inverted(self, data_dir):
        # An independent kernel, in floats: half a level of 255 is rounding, a hundredth float32.
        # Other kernels are 7 and more off, no antialiasing 90.
        pillow = pytest.importorskip("PIL.Image")
        small, _ = omniglot(data_dir, "original", rotated=(), download=False)["test"]
        large, _ = episodes.read_tfds("omniglot", "test[:40]", None, data_dir, False)
        assert set(np.unique(large)) == {0, 255}
        for image, original in zip(small[:40, ..., 0], large[..., 0], strict=True):
            original = pillow.fromarray(original.astype("float32"))
            shrunk = original.resize((28, 28), pillow.Resampling.LANCZOS)
            np.testing.assert_allclose(image, 255 - np.clip(shrunk, 0, 255), atol=0.51, rtol=0)
