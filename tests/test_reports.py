"""Reports in numbers worked out by hand."""

import json
import math
import sys

import numpy as np
import pytest

from keras_maml.reports import DIVERGED, EpisodeReport


def report_of(values, steps=(0, 1), before=None, episodes=None, directions=None, domains=None, **protocol):
    """A report of `{name: (tasks, steps)}`; the loss is 1 where none is given."""
    values = {name: np.asarray(rows, "float64") for name, rows in values.items()}
    tasks = len(next(iter(values.values())))
    values = {"loss": np.ones((tasks, len(steps))), **values}
    return EpisodeReport(
        values=values,
        steps=steps,
        loss_before=values["loss"][:, 0] if before is None else np.asarray(before, "float64"),
        protocol={"model": "net", "tasks": tasks, "ways": "5", "shots": "1", "queries": "15", "seed": "3"} | protocol,
        episodes=np.arange(tasks, dtype="int64") + 2**62 if episodes is None else np.asarray(episodes, "int64"),
        directions={"loss": "down"} | (directions or {}),
        domains=domains,
    )


def test_intervals_cover_the_mean():
    # Each report has 5 tasks of normal values of mean 0.7, of which a 95 % interval covers 0.7 with probability 0.95
    # exactly. The share among 2,000 is binomial with deviation sqrt(0.95 * 0.05 / 2000) = 0.0049, so that 0.93 and 0.97
    # are 4.1 deviations away: beyond them by chance once in 24,000 seeds. By the normal quantile in place of t, 0.88.
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        summary = report_of({"score": random.normal(0.7, 0.2, (5, 1))}, steps=(1,)).summary("score")
        covered += abs(summary.mean - 0.7) <= summary.margin
    assert 0.93 <= covered / 2000 <= 0.97


def test_summary_by_hand():
    # Of 0, 1, ..., 10 a tenth is below 1 and a tenth above 9.
    values = np.stack([np.arange(11.0), 10 * np.arange(11.0)], 1)
    report = report_of({"up": values, "down": values, "unknown": values}, directions={"up": "up", "down": "down"})
    assert report.metrics == ("loss", "up", "down", "unknown")
    assert (report.tasks, report.steps) == (11, (0, 1))
    summary = report.summary("up", 0)
    # Deviation sqrt(11), so that the margin is the t quantile of 10 degrees of freedom, 2.228, times sqrt(11 / 11).
    assert (summary.mean, summary.median, summary.tasks) == (5, 5, 11)
    assert summary.margin == pytest.approx(2.2281, abs=1e-4)
    assert summary.worst_decile == pytest.approx(1)
    assert report.summary("down", 0).worst_decile == pytest.approx(9)
    assert report.summary("down").worst_decile == pytest.approx(90)  # after the last steps
    assert math.isnan(report.summary("unknown").worst_decile)
    assert str(summary) == "up after 0 steps: 5.0 +- 2.2 (11 tasks)"


def test_tasks_that_are_not_finite_are_counted_and_left_out():
    losses = [[1, 1], [1, np.nan], [1, np.inf], [1, 3], [1, 2]]
    scores = [[0, 0.2], [0, 0.9], [0, 0.9], [0, np.nan], [0, 0.4]]
    report = report_of({"loss": losses, "score": scores}, directions={"score": "up"})
    np.testing.assert_array_equal(report.non_finite(), [False, True, True, False, False])
    assert not report.non_finite(0).any()
    loss, score = report.summary("loss"), report.summary("score")
    assert (loss.tasks, loss.non_finite, loss.mean, loss.median) == (3, 2, 2, 2)
    # A score is worth nothing where the loss is not finite, nor where it is not finite itself.
    assert (score.tasks, score.non_finite) == (2, 3)
    assert score.mean == pytest.approx(0.3)
    assert str(score).endswith("(2 tasks, 3 not finite left out)")
    assert report.summary("score", 0).tasks == 5


def test_nothing_is_finite():
    report = report_of({"loss": [[1, np.nan]] * 3})
    summary = report.summary("loss")
    assert (summary.tasks, summary.non_finite, summary.diverged) == (0, 3, 0)
    assert all(math.isnan(v) for v in (summary.mean, summary.margin, summary.median, summary.worst_decile))
    lines = [line.split() for line in str(report).splitlines()]
    assert next(line for line in lines if line[:2] == ["loss", "1"]) == ["loss", "1", "nan", "nan", "nan", "0", "3"]


def test_diverged_by_hand():
    # Limits are ten times the loss before, at least that of the median task, 2: so 20, 20, 20, 40 and, for the task
    # whose loss before was NaN, 20. A loss of NaN is not finite, and not diverged.
    before = [0.1, 2, 2, 4, np.nan]
    after = [19, 20, 21, 39, 21]
    report = report_of({"loss": np.array([after]).T}, steps=(5,), before=before)
    np.testing.assert_array_equal(report.diverged(), [False, False, True, False, True])
    assert report.summary("loss").diverged == 2
    assert report.summary("loss").tasks == 5  # they count in the mean
    assert DIVERGED == 10
    report = report_of({"loss": [[np.nan], [np.inf], [1]]}, steps=(5,), before=[1, 1, 1])
    assert not report.diverged().any()


@pytest.mark.parametrize(
    "arguments, message", [(("acuracy",), "has the metrics .*Received: metric='acuracy'"), (("loss", 3), "steps=3")]
)
def test_of_what_is_not_there(arguments, message):
    report = report_of({"score": np.zeros((2, 2))})
    for method in (report.of, report.summary):
        with pytest.raises(ValueError, match=message):
            method(*arguments)


def test_comparison_by_hand():
    # Differences after one step: 3, 1, -1 and 0 (mean 0.75), so 2 above, 1 below; p = 2 * (1 + 3) / 8, at most 1.
    # Deviation^2 = (2.25^2 + 0.25^2 + 1.75^2 + 0.75^2) / 3 = 2.9167; margin = 3.1824 * 1.7078 / 2.
    here = report_of({"score": [[0, 4], [0, 3], [0, 2], [0, 1]]})
    there = report_of({"score": [[0, 1], [0, 2], [0, 3], [0, 1]], "more": np.zeros((4, 2))})
    row = here.compare(there).of("score")
    assert (row.steps, row.tasks, row.mean, row.above, row.below, row.left_out) == ((1, 1), 4, 0.75, 2, 1, 0)
    assert row.margin == pytest.approx(3.18245 * math.sqrt(8.75 / 3) / 2, rel=1e-5)
    assert row.probability == 1
    assert there.compare(here).of("score", 1).mean == -0.75
    assert {row.metric for row in here.compare(there).rows} == {"loss", "score"}
    header, *lines = str(here.compare(there)).splitlines()
    assert header.split("  ")[0] == "metric"
    assert lines[-1].split() == ["score", "1", "+0.8", "+-", "2.7", "2", "1", "1", "1", "0"]


def test_comparison_is_paired():
    # Tasks differ by hundreds, and every one is better by 0.25 here: paired, the margin is 0.
    tasks = 100 * np.arange(8.0)[:, None]
    row = report_of({"score": tasks + 0.5}, (1,)).compare(report_of({"score": tasks + 0.25}, (1,))).of("score")
    assert (row.mean, row.margin, row.above) == (0.25, 0, 8)
    assert row.probability == pytest.approx(2 / 2**8)


def test_comparison_leaves_out_tasks_that_are_not_finite_in_one():
    here = report_of({"loss": [[np.nan], [1], [1], [4]], "score": [[9], [1], [2], [5]]}, (1,))
    there = report_of({"loss": [[1], [np.inf], [1], [1]], "score": [[0], [9], [1], [2]]}, (1,))
    for metric, mean in (("loss", 1.5), ("score", 2)):
        row = here.compare(there).of(metric)
        assert (row.tasks, row.left_out, row.mean) == (2, 2, mean)


def test_comparison_of_other_numbers_of_steps():
    here = report_of({"score": [[0, 4], [0, 3]]}, (0, 5))
    there = report_of({"score": [[1, 1], [1, 2]]}, (1, 10))
    with pytest.raises(ValueError, match=r"no number of steps in common: \[0, 5\] and \[1, 10\]"):
        here.compare(there)
    comparison = here.compare(there, steps=[(5, 1), (5, 10)])
    assert comparison.of("score", (5, 1)).mean == 2.5
    assert comparison.of("score").mean == comparison.of("score", [5, 10]).mean == 2
    assert "5 and 10" in str(comparison)
    with pytest.raises(ValueError, match=r"Compared were .*Received: metric='score', steps=5"):
        comparison.of("score", 5)
    for steps in ([5], [(5, 1, 2)]):
        with pytest.raises(ValueError, match="must be pairs"):
            here.compare(there, steps=steps)
    with pytest.raises(ValueError, match="Received: steps=7"):
        here.compare(there, steps=[(7, 1)])


@pytest.mark.parametrize("episodes, shared", [((1, 0, 2), 3), ((0, 1, 3), 2), ((0, 1), 2), ((7, 8, 9, 10), 0)])
def test_comparison_refuses_other_episodes(episodes, shared):
    here = report_of({"score": np.zeros((3, 2))}, episodes=(0, 1, 2))
    there = report_of({"score": np.zeros((len(episodes), 2))}, episodes=episodes)
    with pytest.raises(ValueError, match=f"3 and {len(episodes)} episodes, of which {shared} are in both"):
        here.compare(there)
    with pytest.raises(ValueError, match="must be an `EpisodeReport`. Received: dict"):
        here.compare(there.to_dict())


def test_by_domain():
    report = report_of({"score": [[1, 2], [3, 4], [5, 6]]}, domains=("b", "a", "b"), before=[1, 2, 3])
    parts = report.by_domain()
    assert list(parts) == ["b", "a"]
    assert [part.tasks for part in parts.values()] == [part.protocol["tasks"] for part in parts.values()] == [2, 1]
    np.testing.assert_array_equal(parts["b"].of("score"), [2, 6])
    np.testing.assert_array_equal(parts["b"].loss_before, [1, 3])
    np.testing.assert_array_equal(parts["b"].episodes, report.episodes[[0, 2]])
    assert parts["a"].domains == ("a",)
    assert parts["a"].summary("score").margin == math.inf
    assert report.protocol["tasks"] == 3
    with pytest.raises(ValueError, match="of one source"):
        report_of({"score": [[1, 2]]}).by_domain()


def same(a, b):
    """Whether two reports hold the same, NaN and all."""
    for name in a.metrics:
        np.testing.assert_array_equal(a.values[name], b.values[name])
        assert b.values[name].dtype == a.values[name].dtype == "float64"
    np.testing.assert_array_equal(a.loss_before, b.loss_before)
    np.testing.assert_array_equal(a.episodes, b.episodes)
    assert a.episodes.dtype == b.episodes.dtype == "int64"
    others = ("metrics", "steps", "protocol", "directions", "domains")
    assert [getattr(a, name) for name in others] == [getattr(b, name) for name in others]


@pytest.mark.parametrize("domains", [None, ("ä", "b", "ä")])
def test_json_round_trip(tmp_path, domains):
    values = {"loss": [[np.nan, np.inf], [-np.inf, 0.1], [1e-300, 1 / 3]], "score": np.full((3, 2), np.nan)}
    extremes = [-(2**63), 2**63 - 1, 0]
    report = report_of(values, domains=domains, directions={"score": None}, episodes=extremes, versions={"keras": "3"})
    path = tmp_path / "report.json"
    text = report.to_json(path)
    assert path.read_text(encoding="utf-8") == text
    json.loads(text, parse_constant=pytest.fail)  # no NaN, which only Python would read
    for source in (path, str(path), "\n " + text):
        same(report, EpisodeReport.from_json(source))


@pytest.mark.parametrize(
    "change",
    [
        lambda read: read.clear(),
        lambda read: read.update(format=2),
        lambda read: read.update(values=[1, 2]),
        lambda read: read.update(steps=3),
        lambda read: read.update(steps=[0]),
        lambda read: read.update(loss_before=[1.0]),
        lambda read: read.update(episodes=[2**70, 1]),
        lambda read: read.update(domains=["a"]),
        lambda read: read.pop("protocol"),
        lambda read: read["values"].pop("loss"),
        lambda read: read["values"].update(score=[["x", 1], [2, 3]]),
        lambda read: read["values"].update(score=[[1], [2, 3]]),
    ],
)
def test_json_that_is_no_report(tmp_path, change):
    read = report_of({"score": np.zeros((2, 2))}).to_dict()
    EpisodeReport.from_json(json.dumps(read))
    change(read)
    with pytest.raises(ValueError, match="Expected JSON that `EpisodeReport.to_json` wrote"):
        EpisodeReport.from_json(json.dumps(read))


def test_files_that_are_no_report(tmp_path):
    path = tmp_path / "report.json"
    for content in (b"", b"[1, 2]", b"{", b"rubbish", b"\xff\xfe", b"3"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="Expected JSON"):
            EpisodeReport.from_json(path)
    with pytest.raises(FileNotFoundError):
        EpisodeReport.from_json(tmp_path / "nothing.json")


def test_to_dict_keeps_numbers():
    read = report_of({"loss": [[np.nan, 2]], "score": [[1, np.inf]]}).to_dict()
    assert math.isnan(read["values"]["loss"][0][0])
    assert read["values"]["score"] == [[1.0, math.inf]]
    assert read["steps"] == [0, 1]
    assert isinstance(read["episodes"][0], int)


def test_to_dataframe_by_hand():
    pandas = pytest.importorskip("pandas")
    report = report_of({"score": [[0.1, 0.2], [0.3, 0.4]]}, domains=("a", "b"))
    expected = pandas.DataFrame(
        {
            "task": [0, 0, 1, 1],
            "steps": [0, 1, 0, 1],
            "loss": [1.0, 1.0, 1.0, 1.0],
            "score": [0.1, 0.2, 0.3, 0.4],
            "domain": ["a", "a", "b", "b"],
        }
    )
    pandas.testing.assert_frame_equal(report.to_dataframe(), expected, check_dtype=False)
    assert "domain" not in report_of({"score": [[0.1, 0.2]]}).to_dataframe()


def test_to_dataframe_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report_of({"score": [[0.1, 0.2]]}).to_dataframe()


def test_the_table():
    # Scores 0.5 +- 12.706 * 0.2 * sqrt(2) / sqrt(2), of two tasks; the second loss diverges from 1 to 30.
    report = report_of(
        {"loss": [[1, 1], [1, 30]], "score": [[0.5, 0.3], [0.5, 0.7]], "odd": [[1, 1], [1, np.nan]]},
        directions={"score": "up"},
        versions={"keras": "3.15", "numpy": "2.4"},
        training_steps=4,
    )
    headline, blank, header, *rows = str(report).splitlines()
    assert headline == "net: 2 tasks of 5 ways, 1 shot, 15 queries a class"
    assert blank == ""
    assert header.split("  ")[0] == "metric"
    # Columns are as wide as their headings, so single spaces are within a cell.
    cells = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows]
    assert cells[0] == ["loss", "0", "1.0000 +- 0.0000", "1", "1", "0", "0"]
    assert cells[1][0:2] == ["loss", "1"]
    assert cells[1][-2:] == ["1", "0"]
    # To repeat with each metric what is counted of the loss would count it twice; what a metric adds is said.
    assert cells[2] == ["score", "0", "0.5000 +- 0.0000", "0.5", "0.5"]
    assert cells[3] == ["score", "1", "0.5 +- 2.5", "0.5", "0.34"]
    assert cells[5] == ["odd", "1", "1", "1", "1"]  # no margin of one task, no decile, one not finite
    assert rows[6] == ""
    assert rows[7].split() == ["seed", "3"]
    assert rows[8].split() == ["versions", "keras", "3.15,", "numpy", "2.4"]
    assert rows[9].split() == ["training", "steps", "4"]
    assert max(map(len, str(report).splitlines())) <= 100


def test_headline_of_targets():
    report = report_of({"score": [[1, 2]] * 3})
    report.protocol.clear()
    report.protocol.update(model="net", supports_of_a_task="1", queries_of_a_task="3 to 10")
    assert str(report).splitlines()[0] == "net: 3 tasks of 1 support, 3 to 10 queries"
    report.protocol.clear()
    assert str(report).splitlines()[0] == "model: 3 tasks"


def test_reports_are_told_apart_by_identity():
    # Arrays have no truth value, so that fields could not be compared by `==`.
    report = report_of({"score": [[1, 2]] * 3})
    assert report == report
    assert report != report_of({"score": [[1, 2]] * 3})
    assert len({report, report}) == 1
