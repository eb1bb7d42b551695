"""Episode batches made by hand."""

import numpy as np

RANDOM = np.random.default_rng(0)


def batch(labels=((0, 1),), queries=((1, 1, 0),), **more):
    """One task of 2 supports and 3 queries."""
    x = {"support_x": np.ones((1, 2, 4)), "support_y": np.array(labels), "query_x": np.ones((1, 3, 4))}
    return x | more, np.array(queries)


def words(figure):
    """All texts of a figure that are not those of an axis."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def thumbnails(figure):
    """`(left, top, right, bottom, pixels)` of every image, in inches from the upper left corner."""
    found = []
    for image in figure.axes[0].get_images():
        left, right, bottom, top = image.get_extent()
        found.append((left, top, right, bottom, np.asarray(image.get_array())))
    return found


def episode(x, y, supports=6, queries=9, tasks=3, **more):
    """A batch of which every task has examples `x(n)` of labels `y(n)`."""
    parts = [np.stack([make(n) for _ in range(tasks)]) for n in (supports, queries) for make in (x, y)]
    return {"support_x": parts[0], "support_y": parts[1], "query_x": parts[2]} | more, parts[3]


def vectors(n):
    return RANDOM.normal(size=(n, 4))


def classes(n):
    return np.arange(n) % 3


def targets(n):
    return RANDOM.normal(size=(n, 1))
