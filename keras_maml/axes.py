"""What the pictures of `keras_maml.plots` share: figures, ticks, scales, legends, notes."""

import textwrap

import numpy as np

from keras_maml.episodes.panels import figure_class

GREY = "0.4"
LOG_FROM = 100.0  # greatest over least number from which on an axis is logarithmic
LABEL = 40  # letters of a line of a legend, or of the path of a variable


def axes_for(ax, width, height, beside=()):
    """The given axes, or those of a new figure of so many inches, and more for a legend of the labels `beside` them."""
    if ax is not None:
        return ax
    if beside:
        width += 0.6 + 0.062 * max(len(line) for label in beside for line in _wrapped(label).split("\n"))
        height = max(height, 0.4 + sum(0.2 + 0.135 * _wrapped(label).count("\n") for label in beside))
    return figure_class()((width, height), dpi=120, layout="constrained").subplots()


def count_of(number, noun):
    """Such as "1 task" and "2 tasks"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def frame(axes, targets, curves):
    """Limits that hold all targets, and of wild curves no more than lets the targets be seen."""
    low, high = float(targets.min()), float(targets.max())
    room = (high - low) or 1.0
    curves = curves[np.isfinite(curves)]
    least, greatest = curves.min(initial=low), curves.max(initial=high)
    axes.set_ylim(max(least, low - room) - 0.06 * room, min(greatest, high + room) + 0.06 * room)


def step_ticks(axes, steps):
    """Ticks at the steps, with as many numbers as fit."""
    room = 0.05 * (steps[-1] - steps[0])
    named = [steps[0]]
    for k in steps[1:]:
        if k - named[-1] >= room:
            named.append(k)
    if named[-1] != steps[-1]:
        named = [k for k in named if steps[-1] - k >= room] + [steps[-1]]
    axes.set_xticks(named)
    axes.set_xticks([k for k in steps if k not in named], minor=True)


def scale(axes, values, axis):
    """Makes an axis logarithmic if values are far apart; whether it did."""
    values = np.asarray(values)[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > LOG_FROM * values.min():
        getattr(axes, f"set_{axis}scale")("log")
        return True
    return False


def square(axes, spots):
    """The same scale and limits on both axes, and the diagonal."""
    low, high = (spots.min(), spots.max()) if spots.size else (0.0, 1.0)
    if all([scale(axes, spots.ravel(), axis) for axis in "xy"]):
        room = (high / low) ** 0.05
        low, high = low / room, high * room
    else:
        room = 0.05 * (high - low) or 0.5
        low, high = low - room, high + room
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def finish(axes, xlabel, ylabel, notes):
    """Names of the axes, a pale grid, notes above."""
    axes.set_xlabel(xlabel, fontsize=9, parse_math=False)
    axes.set_ylabel(ylabel, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    inches = axes.get_window_extent().width / axes.figure.dpi
    lines = [line for note in notes for line in textwrap.wrap(note, max(24, int(inches / 0.065)))]
    if lines:
        axes.set_title("\n".join(lines), loc="left", fontsize=8, color=GREY, parse_math=False)


def legend(axes, handles, labels, beside=True):
    """A legend: beside the axes, where it hides nothing, if the layout of the figure makes room there; else inside."""
    place = {"loc": "best"}
    if beside and axes.figure.get_layout_engine() is not None:
        place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
    made = axes.legend(handles, [_wrapped(label) for label in labels], fontsize=8, handlelength=2.5, **place)
    for text in made.get_texts():
        text.set_parse_math(False)


def _wrapped(label):
    return "\n".join(textwrap.fill(line, LABEL) for line in str(label).splitlines())


def shortened(path):
    """A path without what matters least: its beginning."""
    return path if len(path) <= LABEL else "..." + path[3 - LABEL :]
