import numpy as np
import pytest
from handmade import RANDOM, classes, episode, targets, thumbnails, vectors, words

from keras_maml import datasets, episodes

FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg
FORMULA = "$\\frac$"  # which matplotlib refuses, where it is not told that text is text


def check_no_overlap(figure):
    """Neither two texts, nor a text and an image, nor two axes cover the same place; nothing is beyond the paper."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawer = canvas.get_renderer()
    boxes = [text.get_window_extent(drawer) for axes in figure.axes for text in axes.texts]
    boxes += [image.get_window_extent(drawer) for image in figure.axes[0].get_images()]
    boxes += [axes.get_tightbbox(drawer) for axes in figure.axes[1:] if axes.axison]
    for i, box in enumerate(boxes):
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1
        for other in boxes[i + 1 :]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across, down) < 1.5  # pixels


@pytest.mark.parametrize(
    "batch, arguments",
    [
        (episode(lambda n: RANDOM.random((n, 9, 5, 3)), lambda n: np.arange(n) % 12, 90, 150), {}),
        (episode(lambda n: RANDOM.random((n, 5, 9)), targets, 3, 99), {}),
        (episode(lambda n: np.array(["$\\frac$ text " * 9] * n), classes), {"names": ["short", "name " * 9, FORMULA]}),
        (episode(lambda n: np.array(["a text"] * n), targets), {"tasks": 3}),
        (episode(vectors, targets, domain=np.array([0, 1, 2])), {"tasks": 3}),
        (episode(vectors, lambda n: np.arange(n) % 12, 24, 90), {"names": [FORMULA * 3] * 12, "tasks": 3}),
        (episode(lambda n: RANDOM.normal(size=(n, 1)), classes, support_weight=np.eye(3, 6)), {}),
    ],
)
def test_nothing_overlaps(batch, arguments):
    check_no_overlap(episodes.plot(batch, **arguments))


def test_what_does_not_fit_is_counted():
    many = episode(lambda n: RANDOM.random((n, 5, 5, 1)), lambda n: np.arange(n) % 2, 14, 50, tasks=1)
    figure = episodes.plot(many)
    assert len(thumbnails(figure)) == 2 * (6 + 10)
    assert words(figure).count("+1") == 2 and words(figure).count("+15") == 2
    many = episode(lambda n: RANDOM.random((n, 5, 5, 1)), lambda n: np.arange(n) % 10, 10, 10, tasks=1)
    assert len(thumbnails(episodes.plot(many))) == 16 and "and 2 more classes" in words(episodes.plot(many))
    many = episode(lambda n: RANDOM.random((n, 5, 5, 1)), targets, 50, 81, tasks=1)
    assert len(thumbnails(episodes.plot(many))) == 48 + 80
    assert {"and 2 more", "and 1 more"} <= set(words(episodes.plot(many)))
    many = episode(vectors, lambda n: np.arange(n) % 13, 13, 26, tasks=1)
    assert "and 3 more" in words(episodes.plot(many))


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([0, 51, 102], "uint8"), [0, 0.2, 0.4]),
        (np.array([0.25, 0.5, 0.75]), [0.25, 0.5, 0.75]),
        (np.array([-1, 0, 1.0]), [0, 0.5, 1]),
        (np.array([1, 3, 5]), [0, 0.5, 1]),
        (np.array([1, np.nan, 3]), [0, 0, 1]),
        (np.array([2.0, 2.0, 2.0]), [0, 0, 0]),
    ],
)
def test_brightness_is_one_scale_a_task(values, expected):
    # Bytes and numbers in [0, 1] are brightnesses; others go from their least to their greatest; NaN is black.
    batch = episode(lambda n: np.tile(values, n)[:n, None, None, None], classes, 3, 3, tasks=1)
    shown = [pixel.item() for *_, pixel in thumbnails(episodes.plot(batch))]
    np.testing.assert_allclose(shown, expected * 2, rtol=1e-6)


def test_targets_stand_beneath_their_images():
    batch = episode(lambda n: RANDOM.random((n, 5, 5, 3)), targets, 2, 3, tasks=1)
    figure = episodes.plot(batch)
    values = np.concatenate([batch[0]["support_y"][0], batch[1][0]])[:, 0]
    assert words(figure)[2:4] + words(figure)[5:] == [f"{value:.4g}" for value in values]
    for (left, top, right, bottom, _), value in zip(thumbnails(figure), values, strict=True):
        assert bottom - top == pytest.approx(right - left)
        (text,) = [t for t in figure.axes[0].texts if t.get_text() == f"{value:.4g}"]
        assert left < text.get_position()[0] < right and bottom < text.get_position()[1] < bottom + 0.2


def test_curves():
    dataset = datasets.sinusoid(shots=5, queries=9, tasks=3, seed=0)
    x, y = next(iter(dataset))
    figure = episodes.plot((x, y), tasks=3)
    assert len(figure.axes) == 4 and "task 3 of 3: 5 supports, 9 queries" in words(figure)
    supports, queries, line = figure.axes[2].get_lines()
    np.testing.assert_array_equal(supports.get_xydata(), np.c_[x["support_x"][1], x["support_y"][1]])
    np.testing.assert_array_equal(queries.get_xydata(), np.c_[x["query_x"][1], y[1]])
    assert (np.diff(line.get_xdata()) >= 0).all()
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["supports", "queries"]


def test_targets_of_vectors_are_drawn_over_the_first_number():
    batch = episode(vectors, lambda n: RANDOM.normal(size=(n, 2)))
    figure = episodes.plot(batch)
    supports, queries = figure.axes[1].get_lines()  # no line: the points are on no curve
    np.testing.assert_array_equal(queries.get_xydata(), np.c_[batch[0]["query_x"][0, :, 0], batch[1][0, :, 0]])
    assert words(figure)[-1] == "Of the 4 numbers of x the first is drawn. Of the 2 numbers of y the first is drawn."
    assert (figure.axes[1].get_xlabel(), figure.axes[1].get_ylabel()) == ("x[0]", "y[0]")


@pytest.mark.parametrize("one_hot", [False, True])
def test_vectors_are_points_of_their_first_two_numbers_coloured_by_class(one_hot):
    batch = episode(vectors, lambda n: np.eye(3)[classes(n)] if one_hot else classes(n), tasks=1)
    figure = episodes.plot(batch)
    collections = figure.axes[1].collections
    for position, (x, n) in enumerate(((batch[0]["support_x"], 6), (batch[0]["query_x"], 9))):
        for label, dots in enumerate(collections[3 * position : 3 * position + 3]):
            np.testing.assert_array_equal(dots.get_offsets(), x[0, classes(n) == label, :2])
    colours = [dots.get_facecolor()[0, :3].tolist() for dots in collections]
    assert colours[:3] == colours[3:] and len(set(map(tuple, colours))) == 3
    assert {"0", "1", "2"} <= set(words(figure))


def test_labels_of_texts_are_drawn_evenly():
    found = episode(lambda n: np.array([f"text {i}" for i in range(n)]), lambda n: np.arange(n) // 20, 1, 60, tasks=1)
    texts = [word for word in words(episodes.plot(found)) if word.startswith("text")][1:]
    assert texts == [f"text {i}" for i in (0, 1, 2, 3, 20, 21, 22, 40, 41, 42)]


def test_a_class_without_support_has_its_row():
    batch = episode(lambda n: RANDOM.random((n, 5, 5, 1)), lambda n: np.arange(n) % 4, 2, 4, tasks=1)
    figure = episodes.plot(batch)
    assert len(thumbnails(figure)) == 6 and {"0", "1", "2", "3"} <= set(words(figure))
