"""Two reports of the same episodes, compared task by task; and the tables of both."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Difference:
    """One metric of two reports: this one minus the other, task by task.

    Args:
        metric: its name.
        steps: numbers of steps of this report and of the other.
        tasks: how many tasks are finite in both.
        mean, margin: mean difference and half the width of its 95 % interval.
        above, below: tasks where this report's value is greater, or less.
        probability: of a split as uneven or more if neither were better (sign test, two-sided).
        left_out: tasks that are not finite in one of the two.
    """

    metric: str
    steps: tuple
    tasks: int
    mean: float
    margin: float
    above: int
    below: int
    probability: float
    left_out: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `EpisodeReport.compare` found; `str` of it is a table.

    Args:
        rows: a `Difference` for each metric and pair of steps.
    """

    rows: tuple

    def of(self, metric, steps=None):
        """The `Difference` of one metric, after the last steps or after `steps`, a number or a pair.

        Raises:
            ValueError: if there is none.
        """
        pair = (steps, steps) if isinstance(steps, int) else steps and tuple(steps)
        found = [row for row in self.rows if row.metric == metric and pair in (None, row.steps)]
        if not found:
            known = [(row.metric, row.steps) for row in self.rows]
            raise ValueError(f"Compared were {known}. Received: metric={metric!r}, steps={steps!r}.")
        return found[-1]

    def __str__(self):
        rows = [("metric", "steps", "mean difference", "above", "below", "equal", "sign test p", "left out")]
        for row in self.rows:
            steps = row.steps[0] if row.steps[0] == row.steps[1] else f"{row.steps[0]} and {row.steps[1]}"
            equal = row.tasks - row.above - row.below
            difference = with_margin(row.mean, row.margin, "+")
            counts = (row.above, row.below, equal, f"{row.probability:.2g}", row.left_out)
            rows.append((row.metric, steps, difference, *counts))
        return "\n".join(table(rows))


def with_margin(mean, margin, sign=""):
    """`mean +- margin`, with two digits of the margin; `sign="+"` shows that of the mean."""
    if not math.isfinite(margin):
        return f"{mean:{sign}.4g}"
    places = 4 if margin == 0 else min(max(0, 1 - math.floor(math.log10(margin))), 8)
    return f"{mean:{sign}.{places}f} +- {margin:.{places}f}"


def number(value):
    """Four digits."""
    return f"{value:.4g}"


def table(rows):
    """Rows in columns, the first to the left and the others to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for first, *others in texts:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
