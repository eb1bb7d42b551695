"""How accurate is each algorithm after the same seconds of training, on the same net and the same test tasks?

    python -m benchmarks.accuracy --data-dir ~/tensorflow_datasets       # everything: about seven hours
    python -m benchmarks.accuracy --data-dir ... --suites omniglot5 --rows maml protonet
    python -m benchmarks.accuracy --list                                 # rows, and which runs are there
    python -m benchmarks.accuracy --table                                # tables and plots of what is there

Every finished run is a file in `--output-dir`; a second call makes those that are missing, so that the programme may be
stopped at any time. What stands in a file was made with the settings that stand in it: where those of `suites.py`
changed since, the run is kept and named, left out of tables, and made again with `--again`.

Only training steps after the first one count as time, and of them the processor time, two seconds of which are a
second here: what two cores do in one. Other work on the machine costs patience, and some speed: a step took up to a
quarter more processor time beside it.
"""

import argparse
import pathlib
import subprocess
import sys

from benchmarks import report
from benchmarks.accuracy import figure, results, suites, training
from keras_maml import set_threads

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "accuracy.md"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder of tensorflow-datasets with Omniglot")
    parser.add_argument("--made-data", action="store_true", help="made pictures in place of Omniglot, to try it")
    parser.add_argument("--output-dir", type=pathlib.Path, default=HERE / "runs")
    parser.add_argument("--suites", nargs="+", choices=suites.SUITES, default=list(suites.SUITES))
    parser.add_argument("--rows", nargs="+", default=None, help="names of rows; default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="default those of each row")
    parser.add_argument("--minutes", type=float, default=None, help="of training; default those of the suite")
    parser.add_argument("--tasks", type=int, default=600, help="test tasks")
    parser.add_argument("--again", action="store_true", help="make runs again that have other settings")
    parser.add_argument("--list", action="store_true", help="say which runs there are, and make none")
    parser.add_argument("--table", action="store_true", help="write tables and plots of what is there, and run nothing")
    parser.add_argument("--ablation", action="store_true", help="the same as --suites ablation")
    parser.add_argument("--page", type=pathlib.Path, default=PAGE, help="Markdown file for --table")
    parser.add_argument("--run", nargs=3, metavar=("SUITE", "ROW", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ablation:
        arguments.suites = ["ablation"]
    unknown = set(arguments.rows or ()) - {row for name in arguments.suites for row in suites.SUITES[name].rows}
    if unknown:
        parser.error(f"no such rows: {sorted(unknown)}; see --list")
    return arguments


def planned(arguments):
    """`(suite, row, seed)` of every run that is asked for: first seeds first."""
    runs = []
    for name in arguments.suites:
        rows = {key: row for key, row in suites.SUITES[name].rows.items() if key in (arguments.rows or [key])}
        of_suite = [(name, key, seed) for key, row in rows.items() for seed in arguments.seeds or row.seeds]
        runs += sorted(of_suite, key=lambda run: run[2])
    return runs


def asked_settings(arguments, name, key):
    suite = suites.SUITES[name]
    minutes = suite.minutes if arguments.minutes is None else arguments.minutes
    return training.settings(suite, suite.rows[key], minutes, arguments.tasks, data_of(arguments))


def data_of(arguments):
    return "made" if arguments.made_data else "omniglot"


def state_of(arguments, store, run):
    """`"missing"`, `"other settings"` or `"there"`."""
    found = store.read(*run)
    if found is None:
        return "missing"
    return "there" if found["settings"] == results.as_read(asked_settings(arguments, *run[:2])) else "other settings"


def run_one(arguments, name, key, seed):
    """Makes one run, in this process."""
    suite = suites.SUITES[name]
    row = suite.rows[key]
    set_threads(row.tasks if row.training == "episodes" else 1)  # a classifier is no loop over tasks
    cache = pathlib.Path("outputs/omniglot.npz")  # not beside the runs, which are kept with the code
    splits = training.made_data() if arguments.made_data else training.omniglot(arguments.data_dir, cache)
    minutes = suite.minutes if arguments.minutes is None else arguments.minutes
    found = training.run(suite, row, int(seed), minutes, arguments.tasks, splits, data_of(arguments))
    results.Store(arguments.output_dir).write(name, key, int(seed), found)


def describe(run):
    seconds = run["seconds"]
    summary = results.report_of(run).summary("accuracy", run["judged_after"])
    return (
        f"{100 * summary.mean:.1f} +- {100 * summary.margin:.1f} % after {run['steps_made']} outer steps; seconds: "
        f"{seconds['training']:.0f} of training, {seconds['first_step']:.0f} of the first step, "
        f"{seconds['validation']:.0f} of validation, {seconds['all']:.0f} in all"
    )


def make_missing(arguments, store):
    """Makes what is missing, each run in a process of its own. Returns how many failed."""
    failed = 0
    for run in planned(arguments):
        state = state_of(arguments, store, run)
        title = f"{run[0]} {run[1]} seed {run[2]}"
        if state == "there" or (state == "other settings" and not arguments.again):
            note = " with other settings, kept; --again makes it anew" if state == "other settings" else ""
            print(f"{title}: is there{note}", flush=True)
            continue
        options = ["--output-dir", str(arguments.output_dir), "--tasks", str(arguments.tasks)]
        for name in ("data_dir", "minutes"):
            value = getattr(arguments, name)
            options += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        options += ["--made-data"] if arguments.made_data else []
        command = [sys.executable, "-m", "benchmarks.accuracy", *options, "--run", *map(str, run)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            failed += 1
            print(f"{title}: failed\n{done.stderr[-2000:]}", flush=True)
        else:
            print(f"{title}: {describe(store.read(*run))}", flush=True)
    return failed


def of_these_settings(arguments, name, runs):
    """The runs that were made with the settings of today; says which others there are."""
    kept = {}
    for key, seeds in runs.items():
        asked = results.as_read(asked_settings(arguments, name, key)) if key in suites.SUITES[name].rows else None
        kept[key] = {seed: run for seed, run in seeds.items() if run["settings"] == asked}
        left_out = sorted(set(seeds) - set(kept[key]))
        if left_out:
            print(f"{name} {key}: not in the table, made with other settings: seeds {left_out}")
    return {key: seeds for key, seeds in kept.items() if seeds}


def write_tables(arguments, store):
    for name in arguments.suites:
        suite = suites.SUITES[name]
        runs = of_these_settings(arguments, name, store.runs(name))
        if not runs:
            print(f"{name}: no runs in {arguments.output_dir}")
            continue
        plot = arguments.page.with_name(f"{arguments.page.stem}_{name}.png")
        figure.draw(suite, runs, plot)
        table = results.markdown(suite, runs) + f"\n![Accuracy against seconds]({plot.name})\n"
        report.update(arguments.page, table, f"<!-- {name}: begin -->", f"<!-- {name}: end -->")
        print(results.markdown(suite, runs))


def main():
    arguments = parse()
    store = results.Store(arguments.output_dir)
    if arguments.run:
        run_one(arguments, *arguments.run)
    elif arguments.list:
        for run in planned(arguments):
            print(*run, state_of(arguments, store, run))
    elif arguments.table:
        write_tables(arguments, store)
    else:
        try:
            sys.exit(make_missing(arguments, store) > 0)
        except KeyboardInterrupt:
            sys.exit("Stopped. What is finished is kept; call again for the rest.")


if __name__ == "__main__":
    main()
