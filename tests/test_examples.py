"""The examples that need no data, run as a user runs them, and what their README rows promise."""

import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(script, *arguments):
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES)
    if done.returncode:
        pytest.fail(f"{script} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def test_sinusoid_after_5000_iterations():
    # An independent implementation reached 0.68 after one step on 10 supports, in 600 tasks.
    printed = run("sinusoid.py", "--iterations", 5000)
    mean, median = map(float, re.search(r"^ +10 +1 +([\d.]+) \[.*?\] +([\d.]+) \[", printed, re.M).groups())
    assert mean < 0.9
    assert median < 0.9


def test_quickstart_serves_what_it_trained(tmp_path):
    printed = run("quickstart.py", "--iterations", 1000, "--output-dir", tmp_path)
    here, served = re.findall(r"^error on that wave after 1 step.*: +([\d.]+)$", printed, re.M)
    assert here == served
    before, after = (
        float(re.search(rf"^{name} +([\d.]+)", printed, re.M)[1]) for name in ("before adaptation", "after 10 steps")
    )
    assert after < before
    assert (tmp_path / "adaptation.png").stat().st_size > 10_000
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def test_serve_saved_model():
    # Supports normalise the queries: a request with one query gets what a request with many gets.
    printed = run("serve_saved_model.py")
    differences = re.findall(r"greatest difference of single requests ([\d.e+-]+)", printed)
    assert len(differences) == 3
    assert max(map(float, differences)) < 1e-5


def test_warp_layers_compares_three_learners():
    printed = run("warp_layers.py", "--iterations", 300)
    rows = re.findall(r"^(MAML|with \S.*?)  +([\d.]+) \S+ \+- \S+ +([\d.]+) \S+ \+- \S+ ", printed, re.M)
    assert [name for name, *_ in rows] == ["MAML", "with more matrices, which adapt too", "with warp layers"]
    before, after = (dict((name, float(row[k])) for name, *row in rows) for k in (0, 1))
    assert all(after[name] < before[name] for name in before)  # medians
    assert after["with warp layers"] < after["MAML"]  # 1.3 and 2.0
    assert re.search(r"^loss +1 +-", printed, re.M)


def test_tune_judges_the_best_of_its_trials(tmp_path):
    pytest.importorskip("keras_tuner")
    printed = run("tune.py", "--trials", 2, "--iterations", 200, "--evaluation-tasks", 100, "--output-dir", tmp_path)
    table = re.search(r"^learning rate  steps  validation loss  best epoch\n((?: .*\n)+)", printed, re.M)[1]
    rows = [row.split() for row in table.splitlines()]
    losses = [float(row[2]) for row in rows]
    assert len(rows) == 2 and losses == sorted(losses)
    assert f"best: learning_rate={rows[0][0]}, steps={rows[0][1]}\n" in printed
    # The report is of the best trial, at the end of its best epoch of 50 outer steps, on waves of its own.
    assert re.search(rf"^training steps +{rows[0][1]}$", printed, re.M)
    assert re.search(rf"^outer steps +{50 * int(rows[0][3])}$", printed, re.M)
    assert re.search(r"^seed +fixed\(100, seed=1\)$", printed, re.M)


# Nothing is needed before the message, so what takes seconds to import is stood in for.
WITHOUT_KERAS_TUNER = """
import runpy, sys, types

for name in ("keras", "quickstart", "keras_maml", "keras_maml.episodes"):
    sys.modules[name] = types.SimpleNamespace(fixed=None)
sys.modules["keras_tuner"] = None
sys.argv = ["tune.py"]
runpy.run_path("tune.py", run_name="__main__")
"""


def test_tune_says_what_is_missing():
    command = [sys.executable, "-c", WITHOUT_KERAS_TUNER]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES)
    assert done.returncode == 1
    assert done.stderr == 'KerasTuner is missing. Install it by `pip install "keras-maml[tuner]"`.\n'
