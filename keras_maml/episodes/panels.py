"""What one task looks like, drawn in inches: `Images`, `Texts`, `Curves`, `Points`.

All have `columns`, how many tasks stand side by side; `width` in inches; `height(task)` in inches; `draw(figure, sheet,
left, top, task)`; and `note`, what the picture says of all tasks.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

SUPPORT, QUERY = "#c44536", "#2a628f"
COLUMNS = {"support": 6, "query": 10}  # images of a class
ROWS = 8  # classes, or rows of images
LINES = 10  # texts of a part
LETTERS = 60  # of a text
NAME = 18  # letters of the name of a label
COLOURS = [f"C{i}" for i in range(10)]
LETTER, LINE = 0.075, 0.2  # inches
HEADINGS = {"support": ("supports", SUPPORT), "query": ("queries", QUERY)}


@dataclasses.dataclass
class Shown:
    """Supports or queries of one task, without padding.

    Args:
        x: `(n, ...)`.
        values: `(n,)`, labels of classes, or the first number of each target.
    """

    x: np.ndarray
    values: np.ndarray


@dataclasses.dataclass
class Task:
    """One task to draw.

    Args:
        title: what stands above it.
        support, query: `Shown`.
        name: label -> string for classes, `None` for targets.
        outputs: how many numbers a target has.
    """

    title: str
    support: Shown
    query: Shown
    name: Callable | None
    outputs: int

    def labels(self):
        """The classes, sorted."""
        return np.unique(np.concatenate([self.support.values, self.query.values])).tolist()


def new_figure(width, height):
    """A figure, and axes over all of it that measure inches from the upper left corner.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure = figure_class()((width, height), dpi=120)
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, width), ylim=(height, 0))
    sheet.axis("off")
    return figure, sheet


def figure_class():
    """matplotlib's `Figure`: one that is made by itself is of no window, and of no state of pyplot's.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib is not installed: pip install "keras-maml[plots]"') from error
    return Figure


def _axes(figure, left, top, width, height):
    """Axes of their own, at a place in inches."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def _shortened(text, letters):
    return text if len(text) <= letters else text[: letters - 3] + "..."


def _names_width(tasks):
    """Inches for the longest name of a label."""
    names = [task.name(label) for task in tasks if task.name for label in task.labels()]
    return 0.1 + LETTER * min(NAME, max(map(len, names), default=0))


class Images:
    """Thumbnails, one row a class; of targets, each with its own beneath."""

    columns = 1
    cell, gap = 0.7, 0.06

    def __init__(self, tasks):
        self.classes = tasks[0].name is not None
        height, width, *channels = tasks[0].support.x.shape[1:]
        self.channels = channels[0] if channels else 1
        self.step = self.cell * min(2, max(0.5, height / width)) + self.gap + (0 if self.classes else 0.15)
        self.names = _names_width(tasks)
        self.counts = {part: self._count(tasks, part) for part in COLUMNS}
        self.left, left = {}, self.names
        for part, count in self.counts.items():
            self.left[part] = left
            left += max(count * (self.cell + self.gap), 0.7) + 0.4  # room for how many more there are
        self.width = left
        self.note = "" if self.channels in (1, 3, 4) else f"Brightness is the mean of {self.channels} channels."

    def _count(self, tasks, part):
        rows = [len(row) for task in tasks for row in self._rows(task, part)]
        return min(COLUMNS[part], max(rows, default=1))

    def _rows(self, task, part):
        """Positions of the examples of each row, all of them."""
        shown = getattr(task, part)
        if self.classes:
            return [np.flatnonzero(shown.values == label) for label in task.labels()]
        positions = np.arange(len(shown.values))
        return [positions[i : i + COLUMNS[part]] for i in range(0, len(positions), COLUMNS[part])]

    def height(self, task):
        rows = max(len(self._rows(task, part)) for part in COLUMNS)
        return 0.25 + min(rows, ROWS) * self.step + (LINE if rows > ROWS else 0)

    def draw(self, figure, sheet, left, top, task):
        low, high = _brightness(task)
        for part, (heading, colour) in HEADINGS.items():
            shown, rows = getattr(task, part), self._rows(task, part)
            begin = left + self.left[part]
            sheet.text(begin, top + 0.12, heading, size=9, color=colour, va="center")
            for row, positions in enumerate(rows[:ROWS]):
                upper = top + 0.25 + row * self.step
                for column, position in enumerate(positions[: self.counts[part]]):
                    x = begin + column * (self.cell + self.gap)
                    self._thumbnail(sheet, x, upper, _pixels(shown.x[position], low, high))
                    if not self.classes:
                        place = x + self.cell / 2, upper + self.step - self.gap - 0.07
                        sheet.text(*place, f"{shown.values[position]:.4g}", size=7, ha="center", va="center")
                more = len(positions) - self.counts[part]
                if more > 0:
                    x = begin + self.counts[part] * (self.cell + self.gap)
                    sheet.text(x, upper + self.cell / 2, f"+{more}", size=8, color=colour, va="center")
            bottom = top + 0.25 + ROWS * self.step + LINE / 2
            if not self.classes and len(rows) > ROWS:
                more = len(shown.values) - ROWS * COLUMNS[part]
                sheet.text(begin, bottom, f"and {more} more", size=8, color="0.4", va="center")
        if self.classes:
            self._labels(sheet, left, top, task)

    def _labels(self, sheet, left, top, task):
        labels = task.labels()
        for row, label in enumerate(labels[:ROWS]):
            middle = top + 0.25 + row * self.step + (self.step - self.gap) / 2
            name = _shortened(task.name(label), NAME)
            sheet.text(left + self.names - 0.08, middle, name, size=9, ha="right", va="center", parse_math=False)
        if len(labels) > ROWS:
            bottom = top + 0.25 + ROWS * self.step + LINE / 2
            more = len(labels) - ROWS
            words = f"and {more} more class{'es' * (more > 1)}"
            sheet.text(left + self.names, bottom, words, size=8, color="0.4", va="center")

    def _thumbnail(self, sheet, left, top, pixels):
        bottom = top + self.step - self.gap - (0 if self.classes else 0.15)
        extent = (left, left + self.cell, bottom, top)
        # Left to itself, it would smooth some of the images and not others, as their edges fall between pixels.
        how = "nearest" if max(pixels.shape[:2]) < 100 else "antialiased"
        sheet.imshow(pixels, "gray", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation=how, zorder=1)
        # Without a frame, bright images would have no end on the paper.
        x, y = [left, left + self.cell, left + self.cell, left, left], [top, top, bottom, bottom, top]
        sheet.plot(x, y, color="0.6", linewidth=0.5, zorder=2)


def _brightness(task):
    """One scale for all images of a task, so that they can be compared."""
    images = [part.x for part in (task.support, task.query) if part.x.size]
    if not images or images[0].dtype == np.uint8:
        return 0.0, 255.0
    finite = [image[np.isfinite(image)] for image in images]
    values = np.concatenate([np.ravel(v) for v in finite]).astype("float64")
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return float(low), float(high) if high > low else low + 1.0


def _pixels(image, low, high):
    """`(height, width)` grey, or `(height, width, 3 or 4)`, in `[0, 1]`; black where it is not finite."""
    scaled = np.clip((np.nan_to_num(image.astype("float64"), nan=low) - low) / (high - low), 0, 1)
    if scaled.ndim == 3 and scaled.shape[-1] not in (3, 4):
        return scaled.mean(-1)
    return scaled


class Texts:
    """Lines, supports on the left and queries on the right, by label."""

    columns = 1
    note = ""

    def __init__(self, tasks, text):
        self.text = text
        self.names = _names_width(tasks) if tasks[0].name else 0.1 + 8 * LETTER
        self.part = self.names + LETTERS * 0.067
        self.width = 2 * self.part + 0.1

    def height(self, task):
        most = max(len(task.support.x), len(task.query.x))
        return 0.25 + LINE * (min(most, LINES) + (most > LINES))

    def draw(self, figure, sheet, left, top, task):
        for part, (heading, colour) in HEADINGS.items():
            begin = left if part == "support" else left + self.part + 0.1
            shown = getattr(task, part)
            # Axes of their own cut off what is too wide, before it reaches the next column.
            axes = _axes(figure, begin, top, self.part, self.height(task))
            axes.set(xlim=(0, self.part), ylim=(self.height(task), 0))
            axes.axis("off")
            axes.text(0, 0.12, heading, size=9, color=colour, va="center")
            for line, position in enumerate(_spread(shown.values, task.name is not None)):
                middle = 0.25 + LINE * (line + 0.5)
                value = shown.values[position]
                name = _shortened(task.name(value), NAME) if task.name else f"{value:.3g}"
                label_colour = COLOURS[task.labels().index(value) % 10] if task.name else "0.3"
                style = {"size": 8, "va": "center", "clip_on": True, "parse_math": False}
                axes.text(0, middle, name, weight="bold", color=label_colour, **style)
                text = " ".join(self.text(shown.x[position]).split())
                axes.text(self.names, middle, _shortened(text, LETTERS), **style)
            if len(shown.x) > LINES:
                words = f"and {len(shown.x) - LINES} more"
                axes.text(self.names, 0.25 + LINE * (LINES + 0.5), words, size=8, color="0.4", va="center")


def _spread(values, classes):
    """At most `LINES` positions: of classes, all as evenly as can be, sorted by label; of targets, the first."""
    if not classes:
        return np.arange(min(len(values), LINES))
    rank = np.zeros(len(values), int)
    for label in np.unique(values):
        chosen = values == label
        rank[chosen] = np.arange(chosen.sum())
    kept = np.lexsort((values, rank))[:LINES]
    return kept[np.argsort(values[kept], kind="stable")]


class Curves:
    """Targets over the first number of x, two tasks side by side."""

    columns, width, tall = 2, 4.4, 2.6

    def __init__(self, tasks):
        self.numbers = int(np.prod(tasks[0].support.x.shape[1:]))
        several = [("x", self.numbers), ("y", tasks[0].outputs)]
        self.note = " ".join(f"Of the {n} numbers of {name} the first is drawn." for name, n in several if n > 1)

    def height(self, task):
        return self.tall

    def draw(self, figure, sheet, left, top, task):
        axes = _axes(figure, left + 0.55, top + 0.25, self.width - 0.65, self.tall - 0.72)
        draw_points(axes, task)
        _finish(axes, axes.get_xlabel(), axes.get_ylabel())


def draw_points(axes, task):
    """Targets over the first number of x, supports before queries, with names of the axes."""
    numbers = int(np.prod(task.support.x.shape[1:]))
    x = {part: getattr(task, part).x.reshape(-1, numbers)[:, 0] for part in HEADINGS}
    style = {"markersize": 7, "markeredgecolor": "white", "zorder": 3}
    axes.plot(x["support"], task.support.values, "o", color=SUPPORT, label="supports", **style)
    axes.plot(x["query"], task.query.values, ".", color=QUERY, markersize=5, label="queries")
    if numbers == 1:
        order = np.argsort(x["query"], kind="stable")
        axes.plot(x["query"][order], task.query.values[order], "-", color=QUERY, linewidth=0.8, alpha=0.4)
    axes.set(xlabel="x" if numbers == 1 else "x[0]", ylabel="y" if task.outputs == 1 else "y[0]")


class Points:
    """The first two numbers of vectors, or one number and the class, coloured by class; two tasks side by side."""

    columns, width, tall = 2, 4.4, 2.9

    def __init__(self, tasks):
        self.numbers = int(np.prod(tasks[0].support.x.shape[1:]))
        self.names = max(0.7, 0.2 + _names_width(tasks))
        self.note = f"Of the {self.numbers} numbers of x the first two are drawn." if self.numbers > 2 else ""

    def height(self, task):
        return self.tall

    def draw(self, figure, sheet, left, top, task):
        width = self.width - 0.7 - self.names
        axes = _axes(figure, left + 0.55, top + 0.25, width, self.tall - 0.72)
        labels = task.labels()
        colours = dict(zip(labels, COLOURS, strict=False))
        for part, marker, size, style in (
            ("support", "*", 120, {"edgecolor": "black", "linewidth": 0.6, "zorder": 3}),
            ("query", "o", 14, {"alpha": 0.6, "linewidth": 0}),
        ):
            shown = getattr(task, part)
            numbers = shown.x.reshape(-1, self.numbers)
            second = shown.values if self.numbers == 1 else numbers[:, 1]
            for label, colour in colours.items():
                chosen = shown.values == label
                axes.scatter(numbers[chosen, 0], second[chosen], size, colour, marker=marker, **style)
            axes.plot([], [], marker, color="0.4", markersize=size**0.5, label=HEADINGS[part][0])
        if self.numbers == 1:
            axes.set_yticks(list(colours), [""] * len(colours))
        _finish(axes, "x" if self.numbers == 1 else "x[0]", "class" if self.numbers == 1 else "x[1]")
        left += 0.65 + width
        for row, (label, colour) in enumerate(colours.items()):
            middle = top + 0.35 + LINE * row
            sheet.plot([left + 0.08], [middle], "o", color=colour, markersize=5)
            name = _shortened(task.name(label), NAME)
            sheet.text(left + 0.2, middle, name, size=8, va="center", parse_math=False)
        if len(labels) > len(COLOURS):
            words = f"and {len(labels) - len(COLOURS)} more"
            sheet.text(left + 0.2, top + 0.35 + LINE * len(COLOURS), words, size=8, color="0.4", va="center")


def _finish(axes, xlabel, ylabel):
    """Small words, a pale grid, a legend above the axes."""
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1}
    axes.legend(fontsize=8, ncols=2, frameon=False, handletextpad=0.1, columnspacing=1, **place)
