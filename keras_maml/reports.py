"""What a few-shot learner can do, task by task: a number with its interval and the protocol that it was taken by."""

import dataclasses
import json
import math
import pathlib

import numpy as np

from keras_maml.comparisons import Comparison, Difference, number, table, with_margin
from keras_maml.intervals import mean_and_margin, sign_test

DIVERGED = 10.0  # times the loss before adaptation
FORMAT = 1  # of the JSON text


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeReport:
    """Loss and metrics of every task after some numbers of inner steps, as `keras_maml.evaluate_episodes` returns it.

        report = keras_maml.evaluate_episodes(meta_model, episodes, tasks=600, steps=(0, 1, 5))
        print(report)
        report.summary("accuracy", 5).mean

    Args:
        values: `{name: (tasks, steps)}`: the query loss under `"loss"`, then the compiled metrics.
        steps: numbers of inner steps, ascending: the columns of `values`.
        loss_before: `(tasks,)`, the query loss before adaptation.
        protocol: dict of what a reader needs to repeat the numbers: ways, shots, queries, tasks, steps, statistics of
            normalisation, seed, versions and the like.
        episodes: `(tasks,)` integers that tell episodes apart; the same for the same data and labels.
        directions: `{name: "up" | "down" | None}`, where better is.
        domains: `(tasks,)` names of the source that each task is of, or `None`.
    """

    values: dict
    steps: tuple
    loss_before: np.ndarray
    protocol: dict
    episodes: np.ndarray
    directions: dict
    domains: tuple | None = None

    @property
    def tasks(self):
        """How many tasks."""
        return len(self.episodes)

    @property
    def metrics(self):
        """Names of what was measured, the loss first."""
        return tuple(self.values)

    def of(self, metric, steps=None):
        """Values of the single tasks, `(tasks,)`.

        Args:
            metric: one of `metrics`.
            steps: one of the report's `steps`; default the last.

        Raises:
            ValueError: if there is no such metric, or no such number of steps.
        """
        if metric not in self.values:
            raise ValueError(f"The report has the metrics {list(self.metrics)}. Received: metric={metric!r}.")
        steps = self.steps[-1] if steps is None else steps
        if steps not in self.steps:
            raise ValueError(f"The report has values after {list(self.steps)} steps. Received: steps={steps!r}.")
        return self.values[metric][:, self.steps.index(steps)]

    def non_finite(self, steps=None):
        """Which tasks have a loss that is NaN or infinite, `(tasks,)` booleans."""
        return ~np.isfinite(self.of("loss", steps))

    def diverged(self, steps=None):
        """Which tasks adaptation has made much worse, `(tasks,)` booleans: those whose loss is finite and more than
        `DIVERGED` times what it was before adaptation, for this task and for the median task."""
        finite = self.loss_before[np.isfinite(self.loss_before)]
        before = np.fmax(self.loss_before, np.median(finite) if len(finite) else 0.0)
        loss = self.of("loss", steps)
        return np.isfinite(loss) & (loss > DIVERGED * np.abs(before))

    def summary(self, metric, steps=None):
        """A `Summary` of one metric; arguments as for `of`. Tasks that are not finite are counted and left out."""
        values = self.of(metric, steps)
        left_out = ~np.isfinite(values) | self.non_finite(steps)
        kept = values[~left_out]
        mean, margin = mean_and_margin(kept)
        direction = self.directions.get(metric)
        worst = {"up": 0.1, "down": 0.9, None: None}[direction]
        empty = len(kept) == 0
        return Summary(
            metric=metric,
            steps=self.steps[-1] if steps is None else steps,
            tasks=len(kept),
            mean=mean,
            margin=margin,
            median=math.nan if empty else float(np.median(kept)),
            worst_decile=math.nan if empty or worst is None else float(np.quantile(kept, worst)),
            diverged=int(self.diverged(steps).sum()),
            non_finite=int(left_out.sum()),
        )

    def by_domain(self):
        """`{name: EpisodeReport}` of the tasks of each source of a mixture.

        Raises:
            ValueError: if the episodes carried no `"domain"`.
        """
        if self.domains is None:
            raise ValueError(
                "The episodes of this report are of one source: their x carries no 'domain'. Datasets of "
                "`keras_maml.episodes.mixture` do."
            )
        names = np.asarray(self.domains)
        return {name: self._some(names == name) for name in dict.fromkeys(self.domains)}

    def _some(self, chosen):
        return dataclasses.replace(
            self,
            values={name: values[chosen] for name, values in self.values.items()},
            loss_before=self.loss_before[chosen],
            protocol={**self.protocol, "tasks": int(chosen.sum())},
            episodes=self.episodes[chosen],
            domains=tuple(np.asarray(self.domains)[chosen].tolist()),
        )

    def compare(self, other, steps=None):
        """Compares with a report of the same episodes, task by task.

            print(report.compare(baseline))

        Args:
            other: an `EpisodeReport` of the same episodes in the same order.
            steps: pairs of a number of steps here and one there; default those that both have.

        Returns:
            A `Comparison`.

        Raises:
            ValueError: if the episodes differ, or if no metric or no number of steps is in both.
        """
        if not isinstance(other, EpisodeReport):
            raise ValueError(f"`other` must be an `EpisodeReport`. Received: {type(other).__name__}.")
        if not np.array_equal(self.episodes, other.episodes):
            shared = np.intersect1d(self.episodes, other.episodes).size
            raise ValueError(
                f"Only reports of the same episodes, in the same order, can be compared task by task. Received: "
                f"{self.tasks} and {other.tasks} episodes, of which {shared} are in both. Evaluate both models on one "
                "dataset with `seed=keras_maml.episodes.fixed(n)`, and with the same `tasks`."
            )
        metrics = [name for name in self.metrics if name in other.metrics]
        pairs = [(k, k) for k in self.steps if k in other.steps] if steps is None else list(steps)
        if any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
            raise ValueError(f"`steps` must be pairs, [(steps here, steps there)]. Received: steps={steps!r}.")
        if not pairs:
            raise ValueError(
                f"The reports have no number of steps in common: {list(self.steps)} and {list(other.steps)}. Pass "
                "`steps=[(steps here, steps there)]`."
            )
        rows = []
        for metric in metrics:
            for here, there in pairs:
                difference = self.of(metric, here) - other.of(metric, there)
                finite = np.isfinite(difference) & ~self.non_finite(here) & ~other.non_finite(there)
                above, below, probability = sign_test(difference[finite])
                mean, margin = mean_and_margin(difference[finite])
                rows.append(
                    Difference(
                        metric=metric,
                        steps=(here, there),
                        tasks=int(finite.sum()),
                        mean=mean,
                        margin=margin,
                        above=above,
                        below=below,
                        probability=probability,
                        left_out=int((~finite).sum()),
                    )
                )
        return Comparison(tuple(rows))

    def __str__(self):
        header = ("metric", "steps", "mean, 95 % interval", "median", "worst decile", "diverged", "not finite")
        rows = [header]
        for metric in self.metrics:
            for steps in self.steps:
                row = self.summary(metric, steps)
                worst = "" if self.directions.get(metric) is None else number(row.worst_decile)
                # Of a task that diverges, the loss tells; to repeat it for each metric would count it twice.
                counts = (row.diverged, row.non_finite) if metric == "loss" else ("", row.non_finite or "")
                rows.append((metric, steps, with_margin(row.mean, row.margin), number(row.median), worst, *counts))
        return "\n".join([*self._headline(), "", *table(rows), "", *self._protocol_lines()])

    def _headline(self):
        words = {"ways": "way", "shots": "shot", "queries": "quer{} a class", "supports_of_a_task": "support"}
        words["queries_of_a_task"] = "quer{}"
        sizes = []
        for key, word in words.items():
            if key in self.protocol:
                one = self.protocol[key] == "1"
                word = word.format("y" if one else "ies") if "{}" in word else word + "s" * (not one)
                sizes.append(f"{self.protocol[key]} {word}")
        yield f"{self.protocol.get('model', 'model')}: {self.tasks} tasks" + " of " * bool(sizes) + ", ".join(sizes)

    def _protocol_lines(self):
        shown = {"model", "tasks", "ways", "shots", "queries", "supports_of_a_task", "queries_of_a_task", "steps"}
        entries = {key: value for key, value in self.protocol.items() if key not in shown}
        width = max(map(len, entries), default=0)
        for key, value in entries.items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {version}" for name, version in value.items())
            yield f"{key.replace('_', ' '):{width}}  {value}"

    def to_dict(self):
        """All of it in lists, numbers and strings; numbers that are not finite stay floats."""
        return {
            "format": FORMAT,
            "values": {name: values.tolist() for name, values in self.values.items()},
            "steps": list(self.steps),
            "loss_before": self.loss_before.tolist(),
            "protocol": self.protocol,
            "episodes": self.episodes.tolist(),
            "directions": self.directions,
            "domains": None if self.domains is None else list(self.domains),
        }

    def to_json(self, path=None):
        """The report as JSON text, written to a file too if `path` is given; `from_json` reads it.

        JSON knows no numbers that are not finite: they become the strings "nan", "inf" and "-inf".
        """
        text = json.dumps(_encoded(self.to_dict()), allow_nan=False)
        if path is not None:
            pathlib.Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source):
        """The report that `to_json` wrote.

        Args:
            source: the path of a file, or the text itself, which begins with `{`.

        Raises:
            ValueError: if it is no report.
            OSError: if there is no such file.
        """
        content = str(source).encode()
        if not content.lstrip().startswith(b"{"):
            content = pathlib.Path(source).read_bytes()
        try:
            return cls._from_dict(json.loads(content))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"Expected JSON that `EpisodeReport.to_json` wrote. Received: {content[:60]!r}... ({error!r})."
            ) from error

    @classmethod
    def _from_dict(cls, read):
        if read["format"] != FORMAT:
            raise ValueError(f"its format is {read['format']!r}, and this version reads {FORMAT}")
        report = cls(
            values={name: np.asarray(values, "float64") for name, values in read["values"].items()},
            steps=tuple(read["steps"]),
            loss_before=np.asarray(read["loss_before"], "float64"),
            protocol=dict(read["protocol"]),
            episodes=np.asarray(read["episodes"], "int64"),
            directions=dict(read["directions"]),
            domains=None if read["domains"] is None else tuple(read["domains"]),
        )
        shapes = {name: values.shape for name, values in report.values.items()}
        sizes = {len(report.loss_before), len(report.domains or report.episodes), report.tasks}
        if "loss" not in shapes or {*shapes.values()} != {(report.tasks, len(report.steps))} or len(sizes) != 1:
            raise ValueError(f"for {report.tasks} tasks and steps {report.steps} its values have shapes {shapes}")
        return report

    def to_dataframe(self):
        """A `pandas.DataFrame` with one row for each task and number of steps: `task`, `steps`, then the metrics, and
        `domain` where there are domains.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("`to_dataframe` needs pandas: `pip install pandas`.") from error
        columns = {
            "task": np.repeat(np.arange(self.tasks), len(self.steps)),
            "steps": np.tile(self.steps, self.tasks),
            **{name: values.reshape(-1) for name, values in self.values.items()},
        }
        if self.domains is not None:
            columns["domain"] = np.repeat(np.asarray(self.domains), len(self.steps))
        return pandas.DataFrame(columns)


@dataclasses.dataclass(frozen=True)
class Summary:
    """One metric after one number of steps.

    Args:
        metric, steps: what it is of.
        tasks: how many tasks it is taken over: those that are finite.
        mean, margin: mean and half the width of its 95 % interval.
        median: of the tasks.
        worst_decile: a tenth of the tasks are worse than this; NaN where it is unknown which side is better.
        diverged: tasks whose loss is finite and more than `DIVERGED` times that before adaptation; they count in
            the mean.
        non_finite: tasks that are left out, as their loss or metric is NaN or infinite.
    """

    metric: str
    steps: int
    tasks: int
    mean: float
    margin: float
    median: float
    worst_decile: float
    diverged: int
    non_finite: int

    def __str__(self):
        left_out = f", {self.non_finite} not finite left out" if self.non_finite else ""
        text = f"{self.metric} after {self.steps} steps: {with_margin(self.mean, self.margin)}"
        return f"{text} ({self.tasks} tasks{left_out})"


def _encoded(value):
    if isinstance(value, dict):
        return {key: _encoded(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(member) for member in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
