import sys

import numpy as np
import pytest
from handmade import RANDOM, classes, episode, thumbnails, vectors, words

from keras_maml import episodes

pytest.importorskip("matplotlib")
LABELS = np.arange(60) % 6
IMAGES = RANDOM.integers(0, 255, (60, 5, 5, 1)).astype("uint8")


def test_images_stand_in_the_row_of_their_class_supports_on_the_left(tmp_path):
    dataset = episodes.from_arrays(IMAGES, LABELS, 3, 2, 4, tasks=5, seed=0)
    figure = episodes.plot(dataset, tasks=2, path=tmp_path / "a.png")
    x, y = next(iter(dataset))
    found = sorted(thumbnails(figure), key=lambda image: (round(image[1], 3), image[0]))
    assert len(found) == 2 * 3 * (2 + 4)
    expected = []
    for task in range(2):
        for label in range(3):
            for part, labels in (("support_x", x["support_y"]), ("query_x", y)):
                expected.extend(x[part].numpy()[task][labels.numpy()[task] == label][..., 0] / 255)
    np.testing.assert_allclose([image[-1] for image in found], expected)
    assert words(figure) == [
        *("task 1 of 5: 6 supports, 12 queries", "supports", "queries", "0", "1", "2"),
        *("task 2 of 5: 6 supports, 12 queries", "supports", "queries", "0", "1", "2"),
    ]
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_padding_is_left_out():
    dataset = episodes.from_arrays(IMAGES, LABELS, (2, 3), (1, 2), {7: 1}, tasks=5, seed=1)
    x, _, weight = next(iter(dataset))
    figure = episodes.plot(dataset, tasks=5)
    assert len(thumbnails(figure)) == x["support_weight"].numpy().sum() + weight.numpy().sum()
    supports, queries = x["support_weight"].numpy().sum(1), weight.numpy().sum(1)
    assert supports.min() < 6
    for t in range(5):
        title = f"task {t + 1} of 5: {supports[t]:.0f} supports, {queries[t]:.0f} queries"
        if (supports[t], queries[t]) != (6, 21):
            title += f" (padding: {6 - supports[t]:.0f} and {21 - queries[t]:.0f} rows)"
        assert title in words(figure)


def test_texts_by_vocabulary_by_function_and_as_they_are():
    tokens = np.stack([LABELS + 1, np.full(60, 7), np.zeros(60, int)], 1)
    vocabulary = ["", *"abcdef", "thing"]
    dataset = episodes.from_arrays(tokens, LABELS, 3, 1, 5, tasks=2, seed=0)
    x, y = next(iter(dataset))
    found = words(episodes.plot(dataset, decode=vocabulary))
    texts = [f"{vocabulary[row[0]]} thing" for row in x["support_x"].numpy().reshape(-1, 3)]
    assert set(texts) <= set(found) and found.count("and 5 more") == 2
    # Of 5 queries of each of 3 classes, 10 are drawn: 4, 3, 3.
    assert [found[8:-1].count(label) for label in "012"] != [5, 5, 5]
    assert "x" * 57 + "..." in words(episodes.plot(dataset, decode=lambda row: "x" * 70))
    strings = np.array(vocabulary)[tokens]
    as_they_are = {"support_x": strings[:6][None], "support_y": LABELS[None, :6], "query_x": strings[:9][None]}
    assert "f thing" in " ".join(words(episodes.plot((as_they_are, LABELS[None, :9]))))


def test_names_and_domains_and_the_input_that_is_drawn():
    sources = [episodes.from_arrays({"a": LABELS[:, None], "b": IMAGES}, LABELS, 2, 1, 3, tasks=4) for _ in range(2)]
    dataset = episodes.mixture({"sketches": sources[0], "photos": sources[1]}, seed=1)
    figure = episodes.plot(dataset, names={0: "cat", 1: "d" * 30}, tasks=4)
    domains = next(iter(dataset))[0]["domain"].numpy()
    for t, domain in enumerate(domains):
        assert f"task {t + 1} of 4, {('sketches', 'photos')[domain]}: 2 supports, 6 queries" in words(figure)
    assert words(figure).count("cat") == words(figure).count("d" * 15 + "...") == 4
    assert "Drawn is x['b'], one of 2 inputs." in words(figure)
    assert len(set(domains)) == 2


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="An episode batch is .*Received: 1 part, the first ndarray"):
        episodes.plot((np.zeros((2, 3)), np.zeros((2, 3))))
    with pytest.raises(ValueError, match="`tasks` must be an integer of at least 1"):
        episodes.plot(episode(vectors, classes), tasks=0)
    films = episode(lambda n: np.zeros((n, 7, 5, 5, 1)), classes)
    with pytest.raises(ValueError, match=r"Drawn are images .* support_x of shape \(3, 6, 7, 5, 5, 1\)"):
        episodes.plot(films)
    with pytest.raises(ValueError, match="`names` must have a name .* none for label 2"):
        episodes.plot(episode(vectors, classes), names=["a", "b"])
    with pytest.raises(ValueError, match=r"`decode` must be .* Received: 2 words, and the tokens \[4, 4\]"):
        episodes.plot(episode(lambda n: np.full((n, 2), 4), classes), decode=["", "a"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "keras-maml\[plots\]"'):
        episodes.plot(episode(vectors, classes))
