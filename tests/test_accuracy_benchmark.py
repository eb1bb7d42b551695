"""The accuracy benchmark: schedules and verdicts by hand, and one run on made data from start to table."""

import dataclasses
import json
import pathlib
import sys
import types

import numpy as np
import pytest

import keras_maml
from keras_maml.recipes import networks

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` is not installed

from benchmarks import sinusoid_numpy, sinusoid_table  # noqa: E402
from benchmarks.accuracy import __main__ as program  # noqa: E402
from benchmarks.accuracy import figure, results, suites, training  # noqa: E402

SUITE = suites.SUITES["omniglot5"]


def made_run(accuracies, steps=1, seconds=10.0, report_steps=(0, 1)):
    """A run whose tasks have these accuracies after the steps."""
    accuracies = np.asarray(accuracies, "float64")
    tasks = len(accuracies)
    columns = np.stack([np.zeros(tasks)] * (len(report_steps) - 1) + [accuracies], 1)
    found = {
        "format": 1,
        "values": {"loss": (1 - columns).tolist(), "accuracy": columns.tolist()},
        "steps": list(report_steps),
        "loss_before": [1.0] * tasks,
        "protocol": {"tasks": tasks, "queries": "15", "versions": {"keras_maml": "0"}},
        "episodes": list(range(tasks)),
        "directions": {"loss": "down", "accuracy": "up"},
        "domains": None,
    }
    return {
        "settings": {"minutes": 5},
        "steps_made": 101,
        "judged_after": report_steps[-1],
        "curve": [{"seconds": s, "steps": 1, "accuracy": float(accuracies.mean())} for s in (1.0, seconds)],
        "seconds": {"training": seconds},
        "machine": {"cores": 2, "load_before": [0.5, 0, 0], "load_after": [1.5, 0, 0]},
        "report": found,
    }


def test_schedules_by_hand():
    assert training.factor("cosine", 0.0) == 1
    assert training.factor("cosine", 0.5) == pytest.approx(0.505)
    assert training.factor("cosine", 1.0) == pytest.approx(0.01)
    assert [training.factor("linear", share) for share in (0, 0.25, 1)] == [1, 0.75, 0]
    assert training.factor("constant", 0.7) == 1


def test_clock_counts_steps_but_neither_the_first_nor_judging(monkeypatch):
    # Each call of a clock below is a second later, a step therefore 1 s, the first one as well, and judging another. Of
    # the processor it is two seconds, one of each core.
    ticks, processor = iter(range(100)), iter(range(0, 200, 2))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(training.time, "process_time", lambda: next(processor))
    seen = []
    clock = training.Clock(4.0, SUITE.rows["maml"], lambda: {"accuracy": 0.5}, seen.append)
    clock.set_model(types.SimpleNamespace(optimizer=types.SimpleNamespace(learning_rate=None), stop_training=False))
    rates = []
    while not clock.model.stop_training:
        clock.on_train_batch_begin(0)
        rates.append(clock.model.optimizer.learning_rate)
        clock.on_train_batch_end(0, {"loss": 1.0})
    assert (clock.steps, clock.spent, clock.wall, clock.first) == (5, 4.0, 4.0, 1)
    assert seen == [0, 0, 0.25, 0.5, 0.75]  # the share that has passed, before each step
    assert rates == pytest.approx([4e-3 * training.factor("cosine", share) for share in seen])
    # Shares of .02 to .2 are all due after one second of four, .35 and .5 after two.
    assert [point["seconds"] for point in clock.curve] == [1, 2, 3, 4]
    assert clock.judging == 4


def test_differences_are_paired_by_task_and_seed():
    base = {0: made_run([0.2, 0.4, 0.6]), 1: made_run([0.3, 0.5, 0.7])}
    row = {1: made_run([0.4, 0.6, 0.8], report_steps=(0, 3)), 2: made_run([0.9, 0.9, 0.9], report_steps=(0, 3))}
    found, by_seed = results.difference(row, base)  # of seed 1 alone: 0.1 for every task, without spread
    assert found.mean == pytest.approx(0.1) and found.margin == pytest.approx(0, abs=1e-9)
    assert found.steps == (3, 1) and by_seed == {1: pytest.approx(0.1)}
    # Means over seeds 1 and 2 would be 0.65, 0.75 and 0.85.
    assert results.mean_report(list(row.values())).of("accuracy") == pytest.approx([0.65, 0.75, 0.85])
    assert results.difference({5: made_run([0.1, 0.2])}, base) is None


def test_verdicts():
    def found(mean, margin):
        return types.SimpleNamespace(mean=mean, margin=margin)

    one, several = {0: 0.02}, {0: 0.03, 1: 0.01}
    assert results.verdict(found(0.02, 0.03), one, [0.9]) == "no effect seen"
    assert results.verdict(found(0.02, 0.01), one, [0.9]) == "better"
    assert results.verdict(found(-0.02, 0.01), {0: -0.02}, [0.9]) == "worse"
    assert "reference differ" in results.verdict(found(0.02, 0.01), one, [0.90, 0.93])
    assert results.verdict(found(0.02, 0.01), several, [0.90, 0.93]) == "better"
    assert "disagree" in results.verdict(found(0.02, 0.01), {0: 0.05, 1: -0.01}, [0.90, 0.93])


def test_table_by_hand():
    random = np.random.default_rng(0).normal(0, 0.01, 50)
    runs = {"maml": {0: made_run(0.8 + random)}, "anil": {0: made_run(0.9 + random), 1: made_run(0.7 + random)}}
    text = results.markdown(SUITE, runs)
    assert "load 1.5 to 1.5" in text and "minus MAML, points" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| ANIL")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # Of seed 0, which MAML has too: 0.1 more in every task. 10 s in the 100 steps after the first.
    noise = 100 * random.mean()
    assert cells[1].startswith(f"{80 + noise:.1f} +- ") and cells[1].endswith(f"[{90 + noise:.1f}, {70 + noise:.1f}]")
    assert cells[2] == "+10.00 +- 0.00" and cells[4:] == ["101", "0.100", "better"]


def test_every_row_can_be_stored_and_says_what_it_is():
    titles = set()
    for name, suite in suites.SUITES.items():
        assert suite.reference in suite.rows
        for key, row in suite.rows.items():
            assert results.as_read(row.to_dict()) == json.loads(json.dumps(row.to_dict()))
            titles.add((name, row.title))
            assert row.schedule in ("cosine", "linear", "constant") and key
    assert len(titles) == sum(len(suite.rows) for suite in suites.SUITES.values())


def test_from_start_to_table(tmp_path, monkeypatch, capsys):
    tiny = dataclasses.replace(SUITE, rows={"maml": dataclasses.replace(SUITE.rows["anil"], tasks=2, queries=1)})
    monkeypatch.setitem(suites.SUITES, "omniglot5", tiny)
    splits = {name: (x[..., :8, :8, :], y) for name, (x, y) in training.made_data().items()}
    monkeypatch.setattr(training, "made_data", lambda: splits)
    monkeypatch.setattr(program, "set_threads", lambda tasks: None)  # TensorFlow has started
    monkeypatch.setattr(suites, "IMAGE", (8, 8, 1))
    page = tmp_path / "page.md"
    page.write_text("<!-- omniglot5: begin -->\n<!-- omniglot5: end -->\n")
    common = ["accuracy", "--suites", "omniglot5", "--made-data", "--tasks", "4", "--minutes", "0.005"]
    common += ["--output-dir", str(tmp_path), "--page", str(page)]

    monkeypatch.setattr(sys, "argv", [*common, "--run", "omniglot5", "maml", "0"])
    program.main()
    run = results.Store(tmp_path).read("omniglot5", "maml", 0)
    assert run["steps_made"] > 1 and run["seconds"]["training"] >= 0.3
    assert run["curve"][-1]["seconds"] >= 0.3 and 0 <= run["curve"][-1]["accuracy"] <= 1
    assert results.report_of(run).tasks == 4

    monkeypatch.setattr(sys, "argv", [*common, "--seeds", "0"])
    monkeypatch.setattr(program.subprocess, "run", lambda *arguments, **options: pytest.fail("it was there"))
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert not ended.value.code and "is there" in capsys.readouterr().out
    # Other settings: kept, and named.
    monkeypatch.setattr(sys, "argv", [*common, "--seeds", "0", "--minutes", "7"])
    with pytest.raises(SystemExit):
        program.main()
    assert "with other settings, kept" in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", [*common, "--table"])
    program.main()
    assert "| ANIL |" in page.read_text()
    assert (tmp_path / "page_omniglot5.png").stat().st_size > 10_000


def test_a_broken_run_leaves_no_file(tmp_path):
    store = results.Store(tmp_path)
    with pytest.raises(TypeError):
        store.write("omniglot5", "maml", 0, {"not": object()})
    assert store.read("omniglot5", "maml", 0) is None and store.runs("omniglot5") == {}
    store.write("omniglot5", "maml", 3, {"value": float("nan")})
    assert store.runs("omniglot5") == {"maml": {3: {"value": "nan"}}}


def test_plots_one_point_as_a_line(tmp_path):
    untrained = made_run([0.5, 0.6])
    untrained["curve"] = [{"seconds": 0.0, "steps": 0, "accuracy": 0.5}]
    figure.draw(SUITE, {"maml": {0: made_run([0.8, 0.9])}, "pixels": {0: untrained}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_sinusoid_table_by_hand(tmp_path):
    # Errors of three waves: 1, 2 and 300, which diverged, with seed 0; three of 2 with seed 1.
    def made(values):
        found = made_run(1 - np.asarray(values), report_steps=(1,))["report"]
        del found["values"]["accuracy"]
        return {"reports": {str(shots): found for shots in sinusoid_table.SHOTS}, "seconds": 1.0, "settings": {}}

    store = results.Store(tmp_path)
    store.write("sinusoid_500", "maml_1", 0, made([1.0, 2.0, 300.0]))
    store.write("sinusoid_500", "maml_1", 1, made([2.0, 2.0, 2.0]))
    text = sinusoid_table.markdown(store)
    assert "\n| MAML, 1 step | 500 | 5 | 51.50 [2.00-101.00] | 2.00 [2.00-2.00] | 1/0 | 2 |\n" in text


def test_sinusoid_in_numpy_has_the_gradient_of_fomaml():
    model = networks.curve_net(40)
    meta_model = keras_maml.MetaModel(model, keras_maml.FOMAML(sinusoid_numpy.INNER_RATE, steps=1))
    meta_model.compile("sgd", loss="mse")
    x, y = sinusoid_numpy.waves(np.random.default_rng(0), tasks=3, points=20)
    episodes = {"support_x": x[:, :10], "support_y": y[:, :10], "query_x": x[:, 10:]}
    _, _, ours = meta_model.meta_gradients(episodes, y[:, 10:])
    theirs = sinusoid_numpy.meta_gradient([w.numpy() for w in model.trainable_weights], x, y)
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_pages_have_the_marks_of_their_tables():
    page = (ROOT / "benchmarks" / "accuracy.md").read_text()
    assert all(page.index(f"<!-- {name}: begin -->") < page.index(f"<!-- {name}: end -->") for name in suites.SUITES)
    page = (ROOT / "benchmarks" / "sinusoid.md").read_text()
    assert page.index(sinusoid_table.START) < page.index(sinusoid_table.END)
