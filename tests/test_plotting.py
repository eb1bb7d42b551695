import sys

import numpy as np
import pytest

from keras_maml import datasets, episodes

pytest.importorskip("matplotlib")
LABELS = np.arange(60) % 6
IMAGES = np.random.default_rng(0).integers(0, 255, (60, 5, 5, 1)).astype("uint8")


def shown(figure):
    """Images, and all words, of a figure."""
    axes = [axis for part in figure.subfigs for axis in part.get_axes()]
    images = [image.get_array() for axis in axes for image in axis.get_images()]
    return axes, images, words_of(figure)


def words_of(figure):
    return [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text"))]


def test_images_stand_in_the_row_of_their_class(tmp_path):
    dataset = episodes.from_arrays(IMAGES, LABELS, 3, 2, 4, tasks=5, seed=0)
    figure = episodes.plot(dataset, tasks=2, path=tmp_path / "a.png")
    x, y = next(iter(dataset))
    axes, images, words = shown(figure)
    assert len(images) == 2 * 3 * 6
    expected = []
    for task in range(2):
        for label in range(3):
            for part, labels in (("support_x", x["support_y"]), ("query_x", y)):
                expected.extend(x[part].numpy()[task][labels.numpy()[task] == label][..., 0] / 255)
    np.testing.assert_allclose(images, expected)
    assert "task 1 of 5: 6 supports, 12 queries" in words and {"0", "1", "2", "supports", "queries"} <= set(words)
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_padding_is_left_out_and_what_does_not_fit_is_counted():
    dataset = episodes.from_arrays(IMAGES, LABELS, (2, 3), (1, 2), {7: 1}, tasks=5, seed=1)
    x, _, weight = next(iter(dataset))
    _, images, _ = shown(episodes.plot(dataset, tasks=5))
    assert len(images) == x["support_weight"].numpy().sum() + weight.numpy().sum()
    assert (x["support_weight"].numpy() == 0).any()
    many = episodes.from_arrays(np.tile(IMAGES, (3, 1, 1, 1)), np.tile(LABELS, 3), 2, 1, 25, tasks=1, seed=0)
    _, images, words = shown(episodes.plot(many))
    assert len(images) == 2 * (1 + 10) and words.count("+15") == 2
    classes = episodes.from_arrays(IMAGES, np.arange(60) // 5, 10, 1, 1, tasks=1, seed=0)
    figure = episodes.plot(classes)
    assert "and 2 more classes" in words_of(figure)


def test_curves():
    dataset = datasets.sinusoid(shots=5, queries=9, tasks=3, seed=0)
    x, y = next(iter(dataset))
    axes, _, words = shown(episodes.plot((x, y), tasks=3))
    assert len(axes) == 3 and "task 3 of 3: 5 supports, 9 queries" in words
    line, queries, supports = axes[1].get_lines()
    np.testing.assert_array_equal(supports.get_xydata(), np.c_[x["support_x"][1], x["support_y"][1]])
    np.testing.assert_array_equal(queries.get_xydata(), np.c_[x["query_x"][1], y[1]])
    assert (np.diff(line.get_xdata()) >= 0).all()


def test_texts_by_vocabulary_and_by_function():
    tokens = np.stack([LABELS + 1, np.full(60, 7), np.zeros(60, int)], 1)
    vocabulary = ["", *"abcdef", "thing"]
    dataset = episodes.from_arrays(tokens, LABELS, 3, 1, 5, tasks=2, seed=0)
    _, _, words = shown(episodes.plot(dataset, decode=vocabulary))
    x, _ = next(iter(dataset))
    texts = [f"{vocabulary[row[0]]} thing" for row in x["support_x"].numpy().reshape(-1, 3)]
    assert set(texts) <= set(words) and words.count("and 7 more") == 2
    _, _, words = shown(episodes.plot(dataset, decode=lambda row: "x" * 70))
    assert "x" * 57 + "..." in words


def test_vectors_are_points_of_their_first_two_numbers():
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    dataset = episodes.from_arrays(vectors, LABELS, 3, 2, 4, tasks=1, seed=0)
    x, y = next(iter(dataset))
    ((axis,), _, _) = shown(episodes.plot(dataset))
    points = np.concatenate([dots.get_offsets() for dots in axis.collections])
    expected = np.concatenate([x["query_x"][0, :, :2], x["support_x"][0, :, :2]])
    assert set(map(tuple, points)) == set(map(tuple, expected))


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="An episode batch is"):
        episodes.plot((np.zeros((2, 3)), np.zeros((2, 3))))
    flat = episodes.from_arrays(np.zeros((60, 1)), LABELS, 2, 1, 1, tasks=2)
    with pytest.raises(ValueError, match=r"Drawn are images .* support_x of shape \(2, 2, 1\)"):
        episodes.plot(flat)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "keras-maml\[plots\]"'):
        episodes.plot(flat)
