"""Finished runs on disk, and tables of them: intervals, paired differences, verdicts."""

import dataclasses
import json
import pathlib
import statistics

import numpy as np

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


def mean_report(runs):
    """One report for several seeds: of every task the mean over the seeds, after the steps that rows are judged by."""
    reports = [report_of(run) for run in runs]
    last = runs[0]["judged_after"]
    values = {metric: np.mean([r.of(metric, last) for r in reports], 0)[:, np.newaxis] for metric in reports[0].metrics}
    before = np.mean([r.loss_before for r in reports], 0)
    return dataclasses.replace(reports[0], values=values, steps=(last,), loss_before=before)


def accuracy_of(run):
    return report_of(run).summary("accuracy", run["judged_after"]).mean


def difference(runs, reference):
    """A row minus the reference, of the seeds that both have.

    Args:
        runs: `{seed: run}` of the row.
        reference: the same of the reference.

    Returns:
        `(Difference, {seed: difference of the means})`, or `None` where there is no such seed.
    """
    shared = [seed for seed in runs if seed in reference]
    if not shared:
        return None
    ours, theirs = (mean_report([part[seed] for seed in shared]) for part in (runs, reference))
    pair = ours.steps + theirs.steps
    found = ours.compare(theirs, steps=[pair]).of("accuracy", pair)
    return found, {seed: accuracy_of(runs[seed]) - accuracy_of(reference[seed]) for seed in shared}


def verdict(found, by_seed, reference):
    """"better", "worse", or that no effect was seen.

    An interval is of test tasks, and knows nothing of how much runs with other seeds differ. So an effect must also be
    seen with every seed, or, if there is one, be larger than the range over the seeds of the reference.

    Args:
        found: the `Difference`.
        by_seed: `{seed: difference of the means}`.
        reference: accuracies of the reference, one a seed.
    """
    if abs(found.mean) <= found.margin:
        return NOTHING
    if len(by_seed) > 1:
        if min(by_seed.values()) <= 0 <= max(by_seed.values()):
            return f"{NOTHING}: seeds disagree"
    elif abs(found.mean) <= max(reference) - min(reference):
        return f"{NOTHING}: seeds of the reference differ as much"
    return "better" if found.mean > 0 else "worse"


def lines(suite, runs):
    """The cells of every row, best first."""
    reference = runs.get(suite.reference, {})
    known = [accuracy_of(run) for run in reference.values()]
    found = []
    for name, seeds in runs.items():
        every = list(seeds.values())
        summary = mean_report(every).summary("accuracy")
        value = f"{100 * summary.mean:.1f} +- {100 * summary.margin:.1f}"
        if len(every) > 1:
            value += f" [{', '.join(f'{100 * accuracy_of(run):.1f}' for run in every)}]"
        compared, judged = "", ""
        pair = difference(seeds, reference) if name != suite.reference else None
        if pair is not None:
            compared = f"{100 * pair[0].mean:+.2f} +- {100 * pair[0].margin:.2f}"
            judged = verdict(*pair, known)
        steps = statistics.mean(run["steps_made"] for run in every)
        seconds = statistics.mean(run["seconds"]["training"] / max(run["steps_made"] - 1, 1) for run in every)
        title = suite.rows[name].title if name in suite.rows else name
        cells = (title, value, compared, str(every[0]["judged_after"]), f"{steps:.0f}", f"{seconds:.3f}", judged)
        found.append((summary.mean, cells))
    return [cells for _, cells in sorted(found, key=lambda item: -item[0])]


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
    ]
    return "\n".join(text) + "\n"
