"""Pictures of episodes: supports beside queries, as images, texts, curves or points."""

import textwrap

import keras
import numpy as np

from keras_maml.arguments import check_whole
from keras_maml.episodes.inspecting import class_labels, domain_names, read_batches
from keras_maml.episodes.panels import Curves, Images, Points, Shown, Task, Texts, new_figure

MARGIN, LINE = 0.12, 0.22  # inches


def plot(batch, tasks=2, path=None, decode=None, names=None):
    """Draws some tasks of an episode batch, supports beside queries.

        keras_maml.episodes.plot(train, path="episodes.png")

    Images are thumbnails, one row a class, or with their targets beneath; texts are lines, one column a part; numbers
    with one target are points of a curve; vectors are points of their first two numbers, coloured by class, or of their
    first number and the target. Padding is left out. Of what is more than fits, the picture says how much there is.

    Nothing of pyplot is touched. In a notebook the figure shows once `%matplotlib inline` was called.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`; or a dataset of such batches, of which the first is drawn. Of
            several inputs one is drawn: images before texts before numbers; the picture names it.
        tasks: how many tasks are drawn, at least 1.
        path: where to write the picture, by its ending `.png`, `.pdf` or `.svg`; `None`: nowhere.
        decode: for texts as numbers: the vocabulary, as `TextVectorization.get_vocabulary()` gives it, or a function
            from a row of `support_x` to a string.
        names: names of the labels, by label: a list or a dict. For tasks that share their classes.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the batch is no episode batch, cannot be drawn, or a label has no name, a token no word.
    """
    check_whole(1, tasks=tasks)
    (found,) = read_batches(batch, 1)
    figure = picture(found, range(min(tasks, found.tasks)), domain_names(batch), decode, names)
    if path is not None:
        figure.savefig(path)
    return figure


def picture(found, which, domains=(), decode=None, names=None):
    """A figure of some tasks; its first axes cover all of it and measure inches from the upper left corner.

    Args:
        found: a `Batch`.
        which: positions of tasks.
        domains: names of the domains, as far as they are known.
        decode, names: as for `plot`.
    """
    text = _decoder(decode)
    path_of_input, leaves = _choose_input(found, decode)
    drawn = tasks_of(found, leaves, which, domains, _namer(names))
    panel = _panel(drawn, leaves, text)
    columns = min(panel.columns, len(drawn))
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    heights = [max(panel.height(task) for task in row) + LINE for row in rows]
    note = " ".join(filter(None, [_input_note(found, path_of_input), panel.note]))
    panel.width = max(panel.width, max(len(task.title) for task in drawn) * 0.078)
    lines = textwrap.wrap(note, int(columns * panel.width / 0.065))
    height = sum(heights) + LINE * len(lines) + (len(rows) + 1) * MARGIN
    figure, sheet = new_figure(columns * (panel.width + MARGIN) + MARGIN, height)
    top = MARGIN
    for row, step in zip(rows, heights, strict=True):
        for column, task in enumerate(row):
            left = MARGIN + column * (panel.width + MARGIN)
            sheet.text(left, top + LINE / 2, task.title, size=9, weight="bold", va="center", parse_math=False)
            panel.draw(figure, sheet, left, top + LINE, task)
        top += step + MARGIN
    for number, line in enumerate(lines):
        sheet.text(MARGIN, top + LINE * number, line, size=8, color="0.4", va="center", parse_math=False)
    return figure


def tasks_of(batch, leaves, which, domains=(), name=str):
    """Tasks of a batch, ready to draw: a list of `panels.Task`.

    Args:
        batch: a `Batch`.
        leaves: arrays `(T, S, ...)` and `(T, Q, ...)`, the input to draw.
        which: positions of tasks.
        domains: names of the domains, as far as they are known.
        name: label -> string.
    """
    targets = [batch.support.targets, batch.query.targets]
    labels = class_labels(targets)
    outputs = 1 if labels is not None else targets[0][0, 0].size
    values = labels if labels is not None else [y.reshape(*y.shape[:2], -1)[..., 0] for y in targets]
    tasks = []
    for t in which:
        parts, padding = [], []
        for part, x, value in zip((batch.support, batch.query), leaves, values, strict=True):
            parts.append(Shown(x[t][part.real[t]], value[t][part.real[t]]))
            padding.append(int((~part.real[t]).sum()))
        title = f"task {t + 1} of {batch.tasks}"
        if batch.domain is not None:
            domain = int(batch.domain[t])
            title += f", {domains[domain] if domain < len(domains) else f'domain {domain}'}"
        title += f": {len(parts[0].x)} supports, {len(parts[1].x)} queries"
        if any(padding):
            title += f" (padding: {padding[0]} and {padding[1]} rows)"
        tasks.append(Task(title, *parts, name if labels is not None else None, outputs))
    return tasks


def _choose_input(batch, decode):
    """Path, and arrays `(T, S, ...)` and `(T, Q, ...)`, of the input to draw."""
    flat = keras.tree.flatten_with_path(batch.support.x)

    def order(path_and_leaf):
        leaf = path_and_leaf[1]
        text = leaf.dtype.kind in "OSU" or (decode is not None and leaf.ndim == 3 and leaf.dtype.kind in "iu")
        return 0 if text and decode is not None else 1 if leaf.ndim in (4, 5) else 2 if text else 3

    position = min(range(len(flat)), key=lambda i: order(flat[i]))
    return flat[position][0], (flat[position][1], keras.tree.flatten(batch.query.x)[position])


def _input_note(batch, path):
    count = len(keras.tree.flatten(batch.support.x))
    name = "".join(f"[{key!r}]" for key in path)
    return f"Drawn is x{name}, one of {count} inputs." if count > 1 else ""


def _panel(tasks, leaves, text):
    """What draws this kind of examples."""
    example = leaves[0][0, 0]
    if text is not None or example.dtype.kind in "OSU":
        return Texts(tasks, text or _read_text)
    if example.ndim in (2, 3):
        return Images(tasks)
    if example.ndim > 3:
        raise ValueError(
            "Drawn are images (T, S, height, width[, channels]), texts, and vectors of numbers. Received: support_x of "
            f"shape {leaves[0].shape}. Draw a slice of each example, such as one frame of a film."
        )
    if tasks[0].name is not None:
        return Points(tasks)
    return Curves(tasks)


def _namer(names):
    def name(label):
        if names is None:
            return str(label)
        try:
            return str(names[label])
        except (IndexError, KeyError):
            raise ValueError(f"`names` must have a name for every label. Received: none for label {label}.") from None

    return name


def _decoder(decode):
    if decode is None or callable(decode):
        return decode

    def text(row):
        try:
            # The vocabulary of TextVectorization has the empty word for padding.
            return " ".join(filter(None, (str(decode[int(token)]) for token in np.ravel(row))))
        except (IndexError, KeyError, TypeError):
            raise ValueError(
                "`decode` must be a vocabulary with a word for every token, or a function from a row of `support_x` to "
                f"a string. Received: {len(decode)} words, and the tokens {np.ravel(row).tolist()}."
            ) from None

    return text


def _read_text(row):
    value = np.ravel(row).tolist()
    return " ".join(part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in value)
