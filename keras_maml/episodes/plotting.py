"""Pictures of episodes: supports beside queries, as images, curves, texts or points."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from keras_maml.episodes.describing import episode_parts, first_output, labels_of

COLUMNS = {"support": 6, "query": 10}  # images of a class that are drawn
ROWS = 8  # classes, or lines of text of a part, that are drawn
LETTERS = 60  # of a text


def plot(batch, tasks=2, path=None, decode=None):
    """Draws some tasks of an episode batch, supports on the left and queries on the right.

    Images are drawn as thumbnails, one row a class; curves (x and y one number each) as points and lines over each
    other; texts as lines; other vectors as points of their first two numbers. Padding is left out. Of what is more than
    fits, the picture says how much there is.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`, or a dataset, of which the first batch is drawn.
        tasks: how many tasks are drawn, at least 1.
        path: where to write the picture, by its ending `.png`, `.pdf` or `.svg`; `None`: nowhere.
        decode: for texts: the vocabulary, as `TextVectorization.get_vocabulary()` gives it, or a function from a row
            of `support_x` to a string.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the batch is no episode batch, or cannot be drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib is not installed: pip install "keras-maml[plots]"') from error
    if isinstance(batch, tf.data.Dataset):
        batch = next(iter(batch.take(1)), ())
    x, y, weight = episode_parts(keras.tree.map_structure(np.asarray, tuple(batch)))
    support_x = first_output(x["support_x"])
    shown = min(tasks, len(support_x))
    parts = [
        _Task(
            *_real(support_x[t], first_output(x["support_y"])[t], x.get("support_weight"), t),
            *_real(first_output(x["query_x"])[t], first_output(y)[t], weight, t),
        )
        for t in range(shown)
    ]
    draw, size = _choose(support_x, first_output(x["support_y"]), parts, decode)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    for number, (task, part) in enumerate(zip(parts, np.atleast_1d(figure.subfigures(shown, 1)), strict=True)):
        title = f"task {number + 1} of {len(support_x)}"
        part.suptitle(f"{title}: {len(task.support_x)} supports, {len(task.query_x)} queries", fontsize=10)
        draw(part, task)
    if path is not None:
        figure.savefig(path)
    return figure


class _Task:
    """One task without its padding."""

    def __init__(self, support_x, support_y, query_x, query_y):
        self.support_x, self.support_y = support_x, support_y
        self.query_x, self.query_y = query_x, query_y

    def part(self, name):
        """`(x, labels)` of `"support"` or `"query"`."""
        x, y = (self.support_x, self.support_y) if name == "support" else (self.query_x, self.query_y)
        return x, labels_of(y[None], None, 0)

    def classes(self):
        """Labels of the supports."""
        return np.unique(self.part("support")[1])


def _real(x, y, weight, task):
    kept = np.ones(len(x), bool) if weight is None else weight[task] > 0
    return x[kept], y[kept]


def _choose(support_x, support_y, tasks, decode):
    """The drawing function for this kind of episodes, and the size of the figure in inches."""
    rank, count = support_x.ndim, len(tasks)
    if rank == 5 and support_x.shape[-1] in (1, 3, 4):
        rows = max(min(len(task.classes()), ROWS) for task in tasks)
        return _draw_images, (9, count * (0.6 * rows + 0.7))
    if decode is not None or support_x.dtype.kind in "OSU":
        lines = max(min(max(len(task.support_x), len(task.query_x)), ROWS) for task in tasks)
        return lambda figure, task: _draw_texts(figure, task, _decoder(decode)), (11, count * (0.26 * lines + 0.8))
    values = support_x.size // max(1, support_x.shape[0] * support_x.shape[1])
    if values == 1 and support_y.dtype.kind == "f":
        return _draw_curve, (7, 2.6 * count)
    if rank >= 3 and values >= 2 and support_y.ndim == 2:
        return _draw_points, (6, 3.2 * count)
    raise ValueError(
        "Drawn are images (T, S, height, width, channels) of 1, 3 or 4 channels, curves (T, S, 1), texts (with "
        f"`decode`) and labelled vectors. Received: support_x of shape {support_x.shape}, support_y {support_y.shape}."
    )


def _draw_images(figure, task):
    classes = task.classes()
    rows = min(len(classes), ROWS)
    widths = {name: _most(task, name) for name in COLUMNS}
    ratios = [1] * widths["support"] + [0.3] + [1] * widths["query"]
    ratios += [1] * (12 - len(ratios))  # few images stay close together
    axes = figure.subplots(rows, len(ratios), squeeze=False, width_ratios=ratios)
    for axis in axes.ravel():
        axis.axis("off")
    # All images of a task on one scale of brightness, so that they can be compared.
    low, high = _brightness(np.concatenate([task.support_x, task.query_x]))
    for row, label in enumerate(classes[:rows]):
        offset = 0
        for name in COLUMNS:
            x, labels = task.part(name)
            of_class = x[labels == label]
            for column, image in enumerate(of_class[: widths[name]]):
                image = (image.astype(float) - low) / max(high - low, 1e-12)
                image = image[..., 0] if image.shape[-1] == 1 else image
                axes[row, offset + column].imshow(image, "gray", vmin=0, vmax=1)
            if len(of_class) > widths[name]:
                last = axes[row, offset + widths[name] - 1]
                last.text(1.05, 0.5, f"+{len(of_class) - widths[name]}", transform=last.transAxes, va="center", size=7)
            offset += widths[name] + 1
        axes[row, 0].text(-0.15, 0.5, str(label), transform=axes[row, 0].transAxes, va="center", ha="right", size=9)
    axes[0, 0].set_title("supports", fontsize=9, loc="left")
    axes[0, widths["support"] + 1].set_title("queries", fontsize=9, loc="left")
    if len(classes) > rows:
        figure.supxlabel(f"and {len(classes) - rows} more classes", fontsize=8)


def _most(task, name):
    return max(1, min(COLUMNS[name], max(np.unique(task.part(name)[1], return_counts=True)[1])))


def _brightness(images):
    return (0, 255) if images.dtype == np.uint8 else (float(images.min()), float(images.max()))


def _draw_curve(figure, task):
    axes = figure.subplots()
    x, y = task.query_x.reshape(len(task.query_x)), task.query_y.reshape(len(task.query_y), -1)[:, 0]
    order = np.argsort(x)
    axes.plot(x[order], y[order], "-", color="tab:gray", lw=1, zorder=1)
    axes.plot(x, y, ".", color="tab:gray", label="queries", zorder=2)
    supports = task.support_x.reshape(len(task.support_x)), task.support_y.reshape(len(task.support_y), -1)[:, 0]
    axes.plot(*supports, "o", color="tab:red", label="supports", zorder=3)
    axes.set(xlabel="x", ylabel="y")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_points(figure, task):
    axes = figure.subplots()
    for name, marker, size in (("query", "o", 12), ("support", "*", 110)):
        x, labels = task.part(name)
        flat = x.reshape(len(x), -1)
        for label, color in zip(task.classes(), itertools.cycle([f"C{i}" for i in range(10)])):
            chosen = flat[labels == label]
            shown = f"{label}" if name == "support" else None
            edge = {"edgecolor": "black", "linewidth": 0.6} if name == "support" else {"alpha": 0.6}
            axes.scatter(chosen[:, 0], chosen[:, 1], size, color=color, marker=marker, label=shown, **edge)
    axes.set(xlabel="first number", ylabel="second number")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="supports", title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _decoder(decode):
    def text(row):
        if callable(decode):
            return str(decode(row))
        if decode is not None:
            return " ".join(str(decode[token]) for token in row.ravel() if token != 0)
        value = row.item() if isinstance(row, np.ndarray) else row
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)

    return text


def _draw_texts(figure, task, decode):
    for axes, name in zip(figure.subplots(1, 2), COLUMNS, strict=True):
        x, labels = task.part(name)
        axes.set(xlim=(0, 1), ylim=(max(map(_bottom, (len(task.support_x), len(task.query_x)))), -0.5))
        axes.axis("off")
        axes.set_title("supports" if name == "support" else "queries", fontsize=9, loc="left")
        for line, row in enumerate(_spread(labels)):
            text = decode(x[row])
            text = text if len(text) <= LETTERS else text[: LETTERS - 3] + "..."
            axes.text(0, line, f"{labels[row]}", size=8, weight="bold", va="center", color=f"C{labels[row] % 10}")
            axes.text(0.05, line, text, size=8, va="center", parse_math=False)
        if len(x) > ROWS:
            axes.text(0.05, ROWS, f"and {len(x) - ROWS} more", size=8, va="center", color="tab:gray")


def _bottom(count):
    """Lower end of the lines of a part, with room for a word on those left out."""
    return min(count, ROWS) + (0.5 if count > ROWS else -0.5)


def _spread(labels):
    """Rows of at most `ROWS` examples, of all labels as evenly as can be, sorted by label."""
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return np.sort(np.lexsort((labels, rank))[:ROWS])
