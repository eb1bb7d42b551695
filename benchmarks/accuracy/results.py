"""Finished runs on disk, and tables of them: intervals, paired differences, verdicts."""

import dataclasses
import json
import math
import pathlib
import statistics

import numpy as np

from keras_maml.intervals import t_quantile
from keras_maml.reports import EpisodeReport

HEADINGS = ("algorithm", "accuracy, %", "minus {}, points", "inner steps", "outer steps", "s a step", "verdict")
NOTHING = "no effect seen"


@dataclasses.dataclass(frozen=True)
class Store:
    """Runs in a folder: `<suite>/<row>_seed<n>.json`, one file a finished run.

    Args:
        folder: made if there is none.
    """

    folder: pathlib.Path

    def path(self, suite, row, seed):
        return pathlib.Path(self.folder) / suite / f"{row}_seed{seed}.json"

    def read(self, suite, row, seed):
        """A run, or `None`."""
        path = self.path(suite, row, seed)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, suite, row, seed, run):
        """Writes a run; a file is whole or not there."""
        path = self.path(suite, row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(_short(run)), encoding="utf-8")
        unfinished.replace(path)

    def runs(self, suite):
        """`{row: {seed: run}}`, seeds ascending."""
        found = {}
        for path in sorted((pathlib.Path(self.folder) / suite).glob("*_seed*.json")):
            row, _, seed = path.stem.rpartition("_seed")
            found.setdefault(row, {})[int(seed)] = json.loads(path.read_text(encoding="utf-8"))
        return {row: dict(sorted(seeds.items())) for row, seeds in found.items()}


def as_read(value):
    """What comes back of a value that `Store.write` wrote."""
    return json.loads(json.dumps(_short(value)))


def _short(value):
    """Floats with six digits: no table shows more, and files are half as long."""
    if isinstance(value, dict):
        return {key: _short(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_short(member) for member in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else str(value)
    return value


def report_of(run):
    """The `EpisodeReport` of a run."""
    return EpisodeReport.from_json(json.dumps(run["report"]))


def diverged_of(run):
    """Which test tasks have a loss that is not finite after the steps that the row is judged by, booleans."""
    return report_of(run).non_finite(run["judged_after"])


def mean_report(runs):
    """One report for several seeds: of every task the mean over the seeds, after the steps that rows are judged by.

    A task that diverged has an accuracy of 0: left out, it would make a row better.
    """
    reports, last = [report_of(run) for run in runs], runs[0]["judged_after"]
    values = [np.where(diverged_of(run), 0.0, r.of("accuracy", last)) for r, run in zip(reports, runs, strict=True)]
    accuracy = np.mean(values, 0)[:, np.newaxis]
    before = np.ones(len(accuracy))
    values = {"loss": 1 - accuracy, "accuracy": accuracy}
    return dataclasses.replace(reports[0], values=values, steps=(last,), loss_before=before)


def accuracy_of(run):
    return mean_report([run]).summary("accuracy").mean


def difference(runs, reference):
    """A row minus the reference, each the mean over its seeds, task by task.

    Args:
        runs: `{seed: run}` of the row.
        reference: the same of the reference.
    """
    ours, theirs = (mean_report(list(part.values())) for part in (runs, reference))
    pair = ours.steps + theirs.steps
    return ours.compare(theirs, steps=[pair]).of("accuracy", pair)


def seed_spread(runs):
    """How much the accuracies of seeds differ within rows.

    Args:
        runs: `{row: {seed: run}}`.

    Returns:
        `(deviation, degrees)`: the standard deviation of one run, pooled over all rows with more than one seed, and its
        degrees of freedom, 0 where there is no such row.
    """
    of_rows = [[accuracy_of(run) for run in seeds.values()] for seeds in runs.values()]
    degrees = sum(len(row) - 1 for row in of_rows)
    squares = sum(float(np.sum(np.square(np.subtract(row, np.mean(row))))) for row in of_rows)
    return (math.sqrt(squares / degrees) if degrees else math.nan), degrees


def whole_margin(margin, spread, seeds):
    """Half of a 95 % interval that knows of test tasks and of seeds.

    ```
    sqrt(margin^2 + (t * deviation)^2 * (1 / ours + 1 / theirs))
    ```

    Args:
        margin: that of the test tasks.
        spread: `(deviation, degrees)` of `seed_spread`.
        seeds: how many the row and the reference have.
    """
    deviation, degrees = spread
    if not degrees:
        return margin
    return math.hypot(margin, t_quantile(0.975, degrees) * deviation * math.sqrt(sum(1 / n for n in seeds)))


def verdict(mean, margin, spread):
    """"better", "worse", that no effect was seen, or that one seed a row does not tell.

    Args:
        mean, margin: of the difference, with the `whole_margin`.
        spread: `(deviation, degrees)` of `seed_spread`.
    """
    if not spread[1]:
        return "seeds not known"
    return NOTHING if abs(mean) <= margin else "better" if mean > 0 else "worse"


def lines(suite, runs):
    """The cells of every row, best first."""
    reference, spread = runs.get(suite.reference), seed_spread(runs)
    found = []
    for name, seeds in runs.items():
        every = list(seeds.values())
        summary = mean_report(every).summary("accuracy")
        value = f"{100 * summary.mean:.1f} +- {100 * summary.margin:.1f}"
        if len(every) > 1:
            value += f" [{', '.join(f'{100 * accuracy_of(run):.1f}' for run in every)}]"
        compared, judged = "", ""
        if reference and name != suite.reference:
            pair = difference(seeds, reference)
            margin = whole_margin(pair.margin, spread, (len(seeds), len(reference)))
            compared = f"{100 * pair.mean:+.2f} +- {100 * margin:.2f}"
            judged = verdict(pair.mean, margin, spread)
        steps = statistics.mean(run["steps_made"] for run in every)
        seconds = statistics.mean(run["seconds"]["training"] / max(run["steps_made"] - 1, 1) for run in every)
        title = suite.rows[name].title
        cells = (title, value, compared, str(every[0]["judged_after"]), f"{steps:.0f}", f"{seconds:.3f}", judged)
        found.append((summary.mean, cells))
    return [cells for _, cells in sorted(found, key=lambda item: -item[0])]


def _of_seeds(runs):
    """How the intervals of differences were made, a sentence."""
    deviation, degrees = seed_spread(runs)
    if not degrees:
        return "Every row has one seed: intervals of differences are of the test tasks alone, and there is no verdict."
    return (
        f"Intervals of differences are of test tasks and seeds: a run has a standard deviation of "
        f"{100 * deviation:.2f} points, pooled over the rows with several seeds "
        f"({degrees} degrees of freedom). Of twenty such intervals one is expected to miss."
    )


def _of_diverged(suite, runs):
    counts = {name: sum(int(diverged_of(run).sum()) for run in seeds.values()) for name, seeds in runs.items()}
    found = [f"{suite.rows[name].title} {count}" for name, count in counts.items() if count]
    return f" Test tasks that diverged, each an accuracy of 0: {', '.join(found)}." if found else ""


def markdown(suite, runs):
    """The table of a suite, with what it is of."""
    every = [run for seeds in runs.values() for run in seeds.values()]
    protocol, machine = every[0]["report"]["protocol"], every[0]["machine"]
    minutes = sorted({run["settings"]["minutes"] for run in every})
    reference = suite.rows[suite.reference].title
    loads = [max(run["machine"]["load_before"][0], run["machine"]["load_after"][0]) for run in every]
    head = [heading.format(reference) for heading in HEADINGS]
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    text = [
        f"{suite.title}: {', '.join(f'{m:g}' for m in minutes)} minutes of training, {protocol['tasks']} test tasks of "
        f"{protocol['queries']} queries a class; 95 % intervals over the tasks, [seeds]. {machine['cores']} cores, "
        f"load {min(loads):.1f} to {max(loads):.1f}. {versions}.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines(suite, runs)]),
        "",
        _of_seeds(runs) + _of_diverged(suite, runs),
    ]
    return "\n".join(text) + "\n"
