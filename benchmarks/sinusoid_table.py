"""How well are sine waves drawn from 5, 10 and 20 of their points, after 1, 5 and 10 inner steps?

    python -m benchmarks.sinusoid_table                    # 70,000 outer steps, 4 algorithms, 3 seeds: an hour
    python -m benchmarks.sinusoid_table --iterations 5000 --algorithms maml_1 --seeds 0
    python -m benchmarks.sinusoid_table --table            # of what is there, into sinusoid.md here

The experiment of Finn et al. 2017 (arXiv:1703.03400, section 5.1) as `keras_maml.recipes.sinusoid_maml` has it: nets
are trained with 10 supports and judged with 5, 10 and 20, on the same 600 new waves. Errors are heavy-tailed where more
steps are made than were trained with, so that medians and numbers of diverged waves stand beside the means.

Every finished run is a file in `--output-dir`; a second call makes those that are missing.
"""

import argparse
import json
import pathlib
import statistics
import time

import keras

import keras_maml
from benchmarks import report
from benchmarks.accuracy.results import Store, as_read
from keras_maml import recipes

HERE = pathlib.Path(__file__).parent
SHOTS = (5, 10, 20)
TASKS = 600
DIVERGED = 100.0  # mean square; the variance of the largest wave is 12.5
START, END = "<!-- sinusoid: begin -->", "<!-- sinusoid: end -->"
ALGORITHMS = {
    "maml_1": ("MAML, 1 step", lambda: keras_maml.MAML(0.01, steps=1)),
    "maml_5": ("MAML, 5 steps", lambda: keras_maml.MAML(0.01, steps=5)),
    "fomaml_1": ("FOMAML, 1 step", lambda: keras_maml.FOMAML(0.01, steps=1)),
    "meta_sgd_1": ("Meta-SGD, 1 step", lambda: keras_maml.MetaSGD(0.01, steps=1)),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--iterations", type=int, default=70_000, help="outer steps")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("outputs/sinusoid"))
    parser.add_argument("--table", action="store_true", help="write the table of what is there, and run nothing")
    parser.add_argument("--page", type=pathlib.Path, default=HERE / "sinusoid.md", help="Markdown file for --table")
    return parser.parse_args()


def suite_of(iterations):
    return f"sinusoid_{iterations}"


def run(name, iterations, seed, tasks=TASKS):
    """Trains and judges.

    Returns:
        A dict for JSON, with a report for each number of supports.
    """
    keras.utils.set_random_seed(seed)
    recipe = recipes.sinusoid_maml()
    meta_model = keras_maml.MetaModel(recipe.model, ALGORITHMS[name][1]())
    at_once = next(n for n in (100, 50, 20, 10, 1) if iterations % n == 0)
    meta_model.compile(**recipe.compile, steps_per_execution=at_once)
    train = keras_maml.datasets.sinusoid(seed=seed, **recipe.episodes)
    begin = time.perf_counter()
    meta_model.fit(train, steps_per_epoch=iterations, verbose=0)
    seconds = time.perf_counter() - begin
    found = {}
    for shots in SHOTS:
        sizes = {**recipe.test_episodes, "shots": shots, "tasks": min(100, tasks)}
        test = keras_maml.datasets.sinusoid(seed=keras_maml.episodes.fixed(tasks), **sizes)
        judged = keras_maml.evaluate_episodes(meta_model, test, tasks, recipe.steps, verbose=0)
        found[str(shots)] = judged.to_dict()
    return {"settings": {"iterations": iterations, "tasks": tasks}, "seconds": seconds, "reports": found}


def errors(run, shots):
    """`{steps: (mean, median, diverged)}` of one run; a wave whose error is not finite has diverged."""
    found = keras_maml.EpisodeReport.from_json(json.dumps(run["reports"][str(shots)]))
    result = {}
    for steps in found.steps:
        row = found.summary("loss", steps)
        result[steps] = row.mean, row.median, int((found.of("loss", steps) > DIVERGED).sum()) + row.non_finite
    return result


def lines(store, suites):
    """The cells of the table: a line for each algorithm, number of outer steps and number of supports."""
    for suite in suites:
        for name, seeds in sorted(store.runs(suite).items(), key=lambda item: list(ALGORITHMS).index(item[0])):
            for shots in SHOTS:
                every = [errors(found, shots) for found in seeds.values()]
                cells = [ALGORITHMS[name][0], suite.rpartition("_")[2], str(shots)]
                for kind in range(3):
                    cells.append(" ".join(_cell([one[steps][kind] for one in every], kind) for steps in every[0]))
                yield [*cells, str(len(every))]


def _cell(values, kind):
    if kind == 2:
        return "/".join(str(value) for value in values)
    text = _number(statistics.median(values))
    return text if len(values) == 1 else f"{text} [{_number(min(values))}-{_number(max(values))}]"


def _number(value):
    return f"{value:.2f}" if value < 1000 else f"{value:.0e}"  # means of diverged waves


def markdown(store):
    """The table of all runs in a folder."""
    suites = sorted(
        (path.name for path in store.folder.glob("sinusoid_*")), key=lambda suite: int(suite.rpartition("_")[2])
    )
    head = ["trained with", "outer steps", "supports", "mean error", "median error", "diverged", "seeds"]
    rows = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines(store, suites)]]
    text = f"After 1, 5 and 10 steps: mean and median over {TASKS} waves, the median seed [least-greatest];\ndiverged: "
    return text + f"waves with an error above {DIVERGED:g}, each seed.\n\n" + "\n".join(rows) + "\n"


def main():
    arguments = parse()
    store = Store(arguments.output_dir)
    if arguments.table:
        table = markdown(store)
        report.update(arguments.page, table, START, END)
        print(table)
        return
    suite = suite_of(arguments.iterations)
    for seed in arguments.seeds:
        for name in arguments.algorithms:
            found = store.read(suite, name, seed)
            if found is None:
                found = as_read(run(name, arguments.iterations, seed))
                store.write(suite, name, seed, found)
            summary = ", ".join(f"{_number(m)} (median {_number(d)})" for m, d, _ in errors(found, 10).values())
            print(f"{name} seed {seed}: {summary} after 1, 5, 10 steps; {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
