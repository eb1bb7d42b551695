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


def test_differences_are_paired_by_task():
    base = {0: made_run([0.2, 0.4, 0.6]), 1: made_run([0.4, 0.6, 0.8])}  # means 0.3, 0.5, 0.7
    row = {1: made_run([0.4, 0.6, 0.8], report_steps=(0, 3))}
    found = results.difference(row, base)  # 0.1 for every task, without spread
    assert found.mean == pytest.approx(0.1) and found.margin == pytest.approx(0, abs=1e-9)
    assert found.steps == (3, 1)
    assert results.mean_report(list(base.values())).of("accuracy") == pytest.approx([0.3, 0.5, 0.7])


def test_a_task_that_diverged_counts_as_wrong():
    run = made_run([0.5, 1.0, 0.9, 0.6])
    run["report"]["values"]["loss"][1][1] = "nan"
    run["report"]["values"]["loss"][2][1] = "inf"
    assert results.accuracy_of(run) == pytest.approx((0.5 + 0.6) / 4)
    assert "diverged, each an accuracy of 0: ANIL 2." in results.markdown(SUITE, {"anil": {0: run}})
    assert results.difference({0: run}, {0: made_run([0.5, 1.0, 0.9, 0.6])}).mean == pytest.approx(-1.9 / 4)


def test_intervals_know_of_seeds():
    # Two rows with accuracies 0.80, 0.84 and 0.70, 0.72, 0.74: squares 8e-4 and 8e-4, over 1 + 2 degrees of freedom.
    runs = {"maml": {0: made_run([0.8, 0.8]), 1: made_run([0.84, 0.84])}}
    runs["anil"] = {seed: made_run([0.7 + 0.02 * seed] * 2) for seed in range(3)}
    runs["boil"] = {0: made_run([0.5, 0.5])}
    deviation, degrees = results.seed_spread(runs)
    assert (deviation, degrees) == (pytest.approx(np.sqrt(16e-4 / 3)), 3)
    # Student's t at 0.975 and three degrees of freedom is 3.182.
    expected = np.sqrt(0.01**2 + 3.182**2 * 16e-4 / 3 * (1 / 3 + 1 / 2))
    assert results.whole_margin(0.01, (deviation, degrees), (3, 2)) == pytest.approx(expected, rel=1e-3)
    assert results.verdict(-0.1, 0.09, (deviation, degrees)) == "worse"
    assert results.verdict(0.1, 0.09, (deviation, degrees)) == "better"
    assert results.verdict(0.1, 0.11, (deviation, degrees)) == "no effect seen"
    alone = results.seed_spread({"maml": {0: made_run([0.8, 0.8])}})
    assert alone[1] == 0 and results.whole_margin(0.01, alone, (1, 1)) == 0.01
    assert results.verdict(0.1, 0.01, alone) == "seeds not known"


def test_table_by_hand():
    random = np.random.default_rng(0).normal(0, 0.01, 50)
    runs = {"maml": {0: made_run(0.8 + random)}, "anil": {0: made_run(0.9 + random), 1: made_run(0.7 + random)}}
    text = results.markdown(SUITE, runs)
    assert "load 1.5 to 1.5" in text and "minus MAML, points" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| ANIL")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # Both means are 0.8; of seeds, 0.9 and 0.7 with one degree of freedom: t is 12.7 and the deviation 0.141. 10 s in
    # the 100 steps after the first.
    noise = 100 * random.mean()
    assert cells[1].startswith(f"{80 + noise:.1f} +- ") and cells[1].endswith(f"[{90 + noise:.1f}, {70 + noise:.1f}]")
    assert cells[2].removeprefix("-").removeprefix("+") == f"0.00 +- {1270.62 * np.sqrt(0.02 * 1.5):.2f}"
    assert cells[4:] == ["101", "0.100", "no effect seen"]
    assert "standard deviation of 14.14 points" in text and "(1 degrees of freedom)" in text


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
    # Made data are no real ones, and other settings are other runs: kept, and named.
    monkeypatch.setattr(sys, "argv", [argument for argument in [*common, "--list"] if argument != "--made-data"])
    program.main()
    assert "omniglot5 maml 0 other settings" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*common, "--seeds", "0", "--minutes", "7"])
    with pytest.raises(SystemExit):
        program.main()
    assert "with other settings, kept" in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", [*common, "--table"])
    program.main()
    assert "| ANIL |" in page.read_text()
    monkeypatch.setattr(sys, "argv", [*common, "--table", "--minutes", "7"])
    program.main()
    assert "maml: not in the table, made with other settings: seeds [0]" in capsys.readouterr().out
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
