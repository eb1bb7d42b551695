"""The benchmark's own arithmetic, and one contestant from check to table; the peers are not needed for that."""

import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` is not installed

from benchmarks import check, evaluation, nets, report, rows  # noqa: E402
from benchmarks.implementations import ENTRIES, keras_models  # noqa: E402
from benchmarks.processes import Failed, Process  # noqa: E402


def row_of(net, **settings):
    return rows.Row("tiny", "tiny", net, **settings)


def test_operations_counted_by_hand():
    # 1-2-2-1: products of 1 x 2, 2 x 2 and 2 x 1 numbers, a multiplication and an addition for each weight
    net = nets.Net("mlp", (1,), outputs=1, width=2)
    assert net.flops() == (2 * (2 + 4 + 2), 2 * 2)
    # Each of 4 layers of 3 x 3 on 2 filters has 9 multiplications for a pair of channels and a pixel: on 8 x 8 pixels
    # with one channel in, then on 4 x 4, 2 x 2 and 1 x 1 with two. A pool leaves half the side, so 0 pixels after the
    # last; on 16 x 16 one is left, and the head has 2 features and 5 outputs.
    net = nets.Net("pooled", (16, 16, 1), outputs=5, width=2)
    first = 2 * 9 * 2 * 16**2
    assert net.flops() == (first + 2 * 9 * 4 * (8**2 + 4**2 + 2**2) + 2 * 2 * 5, first)
    # Strides leave 14, 7, 4, 2 of 28.
    assert nets.Net("strided", (28, 28, 1), outputs=5, width=2).sizes() == [14, 7, 4, 2]
    # Four gates for each of 3 tokens, from 2 inputs and 2 outputs; embeddings have no products.
    net = nets.Net("lstm", (3,), outputs=5, width=2, vocabulary=7)
    assert net.flops() == (3 * 2 * 2 * (2 * 8) + 2 * 2 * 5, 0)
    # Two blocks: 4 projections 4 x 4 and a feed-forward 4 x 8, 8 x 4 for each of 3 tokens; 3 x 3 scores of 4
    # multiplications, and as many for the weighted values.
    net = nets.Net("transformer", (3,), outputs=5, width=4, vocabulary=7)
    assert net.flops() == (2 * 2 * (3 * (4 * 16 + 2 * 32) + 2 * 9 * 4) + 2 * 4 * 5, 0)


def test_floor_of_a_step_counted_by_hand():
    # F = 16, f1 = 1/4; 3 tasks, 2 steps on 5 supports, 7 queries:
    # 3 * 16 * (2 * 5 * (9 - 5/4) + 7 * (3 - 1/4)) = 48 * (77.5 + 19.25)
    net = nets.Net("mlp", (1,), outputs=1, width=2)
    row = row_of(net, tasks=3, steps=2, supports=5, queries=7, learning_rate=0.1)
    assert row.flops() == 48 * 96.75
    # The published prototype's floor: 36.8e9 operations at 490e9 a second are 75 ms.
    assert round(rows.ROWS["omniglot_pooled_t32_k1"].flops() / 490e6) == 75


@pytest.mark.parametrize("name", rows.ROWS)
def test_rows_fit_their_models(name):
    row = rows.ROWS[name]
    episodes, weights = row.episodes(), row.weights()
    for part, count in (("support", row.supports), ("query", row.queries)):
        assert episodes[f"{part}_x"].shape == (row.tasks, count, *row.net.input_shape)
        labels = episodes[f"{part}_y"]
        if row.regression:
            assert labels.shape == (row.tasks, count, 1)
        else:  # as many of each class
            assert (np.sort(labels) == np.repeat(np.arange(rows.WAYS), count // rows.WAYS)).all()
    again = row.episodes()
    assert all((episodes[key] == again[key]).all() for key in episodes)
    model = keras_models.build(row.net, weights)
    for variable, (key, value) in zip(model.trainable_variables, weights.items(), strict=True):
        assert np.allclose(variable.numpy().ravel(), value.ravel()), key


def test_errors_of_a_gradient():
    reference = {"a": np.array([3.0]), "b": np.array([4.0])}
    # Norm 5: 0.5 is a tenth of it, and an eighth of b.
    found = check.errors({"a": np.array([3.0]), "b": np.array([4.5])}, reference)
    assert found == {"error": pytest.approx(0.1), "worst_weight": "b", "worst_weight_error": pytest.approx(0.125)}
    # What is not a number is infinitely wrong, and what should be 0 is measured by a hundredth of the whole.
    assert check.errors({"a": np.array([np.nan]), "b": np.array([4.0])}, reference)["error"] == np.inf
    reference = {"a": np.array([0.0]), "b": np.array([5.0])}
    found = check.errors({"a": np.array([1e-3]), "b": np.array([5.0])}, reference)
    assert (found["worst_weight"], found["worst_weight_error"]) == ("a", pytest.approx(1e-3 / 0.05))


def test_ours_from_check_to_race(tmp_path):
    """A worker gives the gradient of sine waves that NumPy gives by central differences, and then runs."""
    row = rows.ROWS["sinusoid_k1"]
    with open(tmp_path / "log", "w") as log:
        process = Process("keras_maml", sys.executable, log)
        try:
            assert "tensorflow" in process.ask("hello")["versions"]
            pair = {"dtype": "float32", "tasks": [1, 3], "file": str(tmp_path / "gradients.npz")}
            process.ask("check", row=row.name, **pair)
            process.ask("load", row=row.name)
            assert process.ask("first_step")["seconds"] > 0
            answer = process.ask("burst", steps=1)
            assert answer["steps"] == row.steps_per_execution  # as many as are executed at once
            assert process.ask("memory")["growth_mb"] > 0
            with pytest.raises(Failed, match="KeyError: 'no_such_row'"):
                process.ask("load", row="no_such_row")
        finally:
            process.stop()
    gradients = np.load(tmp_path / "gradients.npz")
    random = np.random.default_rng(0)
    weights, episodes = row.weights(), row.episodes()
    direction = {name: random.normal(size=value.shape) for name, value in weights.items()}
    step = 1e-5
    values = [
        np.mean([query_loss(moved(weights, direction, sign * step), row, episodes, task) for task in (1, 3)])
        for sign in (1, -1)
    ]
    along = sum((gradients[name] * direction[name]).sum() for name in weights)
    assert along == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def moved(weights, direction, step):
    return {name: value + step * direction[name] for name, value in weights.items()}


def forward(weights, x):
    """Activations of each layer, and which hidden units are on."""
    layers = [x]
    for name in ("hidden0", "hidden1"):
        layers.append(np.maximum(layers[-1] @ weights[f"{name}/kernel"] + weights[f"{name}/bias"], 0))
    return [*layers, layers[-1] @ weights["head/kernel"] + weights["head/bias"]]


def query_loss(weights, row, episodes, task):
    """The loss after one step of gradient descent, by hand."""
    x, y = episodes["support_x"][task], episodes["support_y"][task]
    *layers, predictions = forward(weights, x)
    delta, adapted = 2 * (predictions - y) / y.size, dict(weights)
    for name in ("head", "hidden1", "hidden0"):
        values = layers.pop()
        adapted[f"{name}/kernel"] = weights[f"{name}/kernel"] - row.learning_rate * values.T @ delta
        adapted[f"{name}/bias"] = weights[f"{name}/bias"] - row.learning_rate * delta.sum(0)
        delta = delta @ weights[f"{name}/kernel"].T * (values > 0)
    x, y = (episodes[name][task][: check.QUERIES] for name in ("query_x", "query_y"))
    return np.square(forward(adapted, x)[-1] - y).mean()


class Pretender:
    """In place of a worker: the gradient of task t is (3, 4 t), off by a share of its own; or it fails."""

    SHARES = {"torch_loop": 0.0, "keras_maml": 1e-5, "keras_eager": 0.05}

    def __init__(self, name):
        self.name = name

    def ask(self, command, row, dtype, tasks, file):
        assert command == "check"
        if self.name == "torch_vmap":
            raise Failed("RuntimeError: in user code:\n\n  a page\n\n  no batching rule\n")
        if self.name not in (*self.SHARES, "torchopt"):
            raise Failed(f"ModuleNotFoundError: No module named '{self.name}'")
        share = self.SHARES.get(self.name, 1.0 if 1 in tasks else 0.0)  # torchopt: wrong in task 1 only
        np.savez(file, a=np.array([3.0]) * (1 + share), b=np.array([4.0 * np.mean(tasks)]) * (1 + share))

    def stop(self):
        pass


def test_who_may_race(tmp_path):
    names = ["keras_maml", "keras_eager", "torchopt", "torch_vmap", "higher", "torch_vmap_stock"]
    verdicts = check.check_all(["sinusoid_k1"], names, Pretender, tmp_path)["sinusoid_k1"]
    assert {name: verdict["status"] for name, verdict in verdicts.items()} == {
        "keras_maml": "right",
        "keras_eager": "wrong",
        "torchopt": "right",  # a ReLU's other side in one task is no wrong formula
        "torch_vmap": "not possible",
        "higher": "not installed",
        check.SECOND_REFERENCE_NAME: "not installed",  # without it the race goes on; the last differs in no such net
    }
    assert verdicts["keras_eager"]["error"] == pytest.approx(0.05)
    # Pairs are (0, 1), (0, 2), (0, 3), ...: the wrong one tries all six.
    assert [verdicts[name]["pairs"] for name in ("keras_maml", "torchopt", "keras_eager")] == [1, 2, 6]
    assert verdicts["torch_vmap"]["reason"] == "RuntimeError: in user code: no batching rule"
    assert verdicts["higher"]["reason"] == "ModuleNotFoundError: No module named 'higher'"


def test_without_a_reference_nothing_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "REFERENCE", "higher")
    with pytest.raises(Failed, match="No module named 'higher'"):
        check.check_all(["sinusoid_k1"], ["keras_maml"], Pretender, tmp_path)


def results():
    timed = {"status": "right", "error": 1e-6, "first_step_s": 1.0, "peak_mb": 900.0, "growth_mb": 100.0}
    return {
        "title": "a row",
        "gflop": 2.0,
        "floor_ms": 100.0,
        "implementations": {
            "jax": {"status": "wrong", "error": 0.5},
            "higher": {"status": "not installed", "reason": "No module named 'higher'"},
            "torch_loop": {**timed, "median": 600.0, "min": 500.0, "max": 700.0},
            "keras_maml": {**timed, "median": 200.0, "min": 150.0, "max": 220.0},
        },
    }


def test_table_of_a_row():
    lines = report.lines_of_row(results())
    assert lines[0] == ("keras_maml", "200 [150, 220]", "", "2.00", "1.0", "900 (+100)", "1e-06")
    assert lines[1] == ("torch loop", "600 [500, 700]", "3.00 x", "6.00", "1.0", "900 (+100)", "1e-06")
    assert lines[2:] == [
        ("JAX", "wrong", "", "", "", "", "5e-01"),
        ("higher", "not installed: No module named 'higher'", "", "", "", "", ""),
    ]
    assert report.text(results()).splitlines()[0] == "a row: floor 100 ms (2 GFLOP)"


def test_tables_go_between_the_marks_of_the_readme(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"above\n{report.START}\nold\n{report.END}\nbelow\n")
    report.update(file, "| new |\n")
    assert file.read_text() == f"above\n{report.START}\n| new |\n{report.END}\nbelow\n"
    file.write_text("no marks\n")
    with pytest.raises(ValueError, match="must have a line '<!-- table: begin -->'"):
        report.update(file, "")
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert readme.index(report.START) < readme.index(report.END)
    assert all(f"| {entry.title} |" in readme for entry in ENTRIES.values())


def test_what_a_report_may_cost_counted_by_hand():
    # Medians of 2.3, 1.4 and 0.2 s for 100 tasks: 1.4 + 3 * 0.2 = 2, so 2.3 is 1.15 times as much.
    seconds = {"report": [9, 2.3, 2.2], "ten": [1.4, 1.3, 2], "pass": [0.2, 0.1, 0.3]}
    expected = "| net | 23.0 [22.0, 90.0] | 14.0 [13.0, 20.0] | 2.0 [1.0, 3.0] | 1.15 |"
    assert evaluation.line_of("net", seconds, tasks=100) == expected
