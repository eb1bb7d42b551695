"""Memory of a meta-step: predicted from its graph, against measured.

    python -m benchmarks.memory_prediction                       # a table; about ten minutes
    python -m benchmarks.memory_prediction --update-readme       # and puts it into README.md here

Growth by an inner step and by a task, each from two points. Every point is a process of its own, `--point`, that prints
what its peak of resident memory is above what it had before it made the batch and the model; the median of `--runs` of
them counts. A prediction is a process of its own too.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys

from benchmarks import nets, report
from benchmarks.rows import OUTER_LEARNING_RATE, ROWS, Row

HERE = pathlib.Path(__file__).parent
START, END = "<!-- memory prediction: begin -->", "<!-- memory prediction: end -->"
REPEATS = 2  # meta-steps of a point
DENSE = Row("dense", "dense, 492,000 weights", nets.Net("mlp", (1,), 1, 700), 8, 1, 10, 10, 0.01)
# Name of a row, and the two numbers of tasks or steps.
STEPS = {
    "mini_imagenet": (1, 5),
    "omniglot_pooled_t8_k5": (1, 5),
    "omniglot_strided_t8_k5": (1, 5),
    "text_lstm": (1, 5),
    "text_transformer": (1, 5),
    "sinusoid_k1": (1, 10),
    "dense": (1, 5),
}
TASKS = {
    "mini_imagenet": (4, 64),
    "omniglot_pooled_t8_k5": (8, 256),
    "omniglot_strided_t8_k5": (8, 256),
    "dense": (8, 32),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="processes for each measured point")
    parser.add_argument("--update-readme", action="store_true", help="put the table into README.md here")
    parser.add_argument("--point", nargs=4, metavar=("KIND", "ROW", "T", "K"), help="'measured' or 'predicted'")
    return parser.parse_args()


def load(name, tasks, steps):
    """The row, and a batch of zeros of its shapes: to draw one leaves memory behind, for the step to use."""
    import tensorflow as tf

    from benchmarks.implementations import keras_maml_fit
    from benchmarks.worker import cast

    row = dataclasses.replace((ROWS | {"dense": DENSE})[name], tasks=tasks, steps=steps)
    keras_maml_fit.KerasMaml.prepare(row)
    one = cast(dataclasses.replace(row, tasks=1).episodes(), "float32")
    x = {name: tf.zeros([tasks, *value.shape[1:]], value.dtype) for name, value in one.items()}
    return row, x, x.pop("query_y")


def build(row):
    import keras

    import keras_maml
    from benchmarks.implementations import keras_models
    from benchmarks.worker import cast

    algorithm = keras_maml.MAML(learning_rate=row.learning_rate, steps=row.steps)
    # All at once: by default there would be four.
    mapping = keras_maml.task_mapping.Vectorized(tasks_at_once=64) if row.name == "dense" else "auto"
    meta_model = keras_maml.MetaModel(keras_models.build(row.net, cast(row.weights(), "float32")), algorithm, mapping)
    meta_model.compile(keras.optimizers.Adam(OUTER_LEARNING_RATE), keras_models.loss(row))
    return meta_model


def measured(name, tasks, steps):
    import keras_maml  # noqa: F401  what importing takes is not the step's
    from benchmarks.worker import memory_mb

    before = memory_mb()[1]
    row, x, y = load(name, tasks, steps)
    meta_model = build(row)
    for _ in range(REPEATS):
        meta_model.train_on_batch(x, y)
    return {"peak": memory_mb()[0] - before}


def predicted(name, tasks, steps):
    from keras_maml.memory import predict_memory

    row, x, y = load(name, tasks, steps)
    prediction = predict_memory(build(row), x, y)
    return {name: getattr(prediction, f"{name}_bytes") / 2**20 for name in ("peak", "per_task", "per_step")}


def point(kind, *arguments):
    command = [sys.executable, "-m", "benchmarks.memory_prediction", "--point", kind, *map(str, arguments)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def lines(pool, cases, runs, what):
    """Rows of a table: title, predicted and measured growth, predicted and measured peak at the first point."""
    futures = []
    for name, values in cases.items():
        row = (ROWS | {"dense": DENSE})[name]
        points = [(name, value, 1) if what == "per_task" else (name, row.tasks, value) for value in values]
        peaks = [[pool.submit(point, "measured", *p) for _ in range(runs)] for p in points]
        futures.append((row, values, peaks, pool.submit(point, "predicted", *points[0])))
    for row, values, peaks, prediction in futures:
        low, high = ([run.result()["peak"] for run in runs] for runs in peaks)
        growth = (statistics.median(high) - statistics.median(low)) / (values[1] - values[0])
        said = prediction.result()
        title = row.title.split(", T=")[0]
        span = f"{values[0]} to {values[1]}"
        axis = f"T={span}, K=1" if what == "per_task" else f"T={row.tasks}, K={span}"
        off = 100 * (said[what] / growth - 1)
        cells = [f"{title}, {axis}", f"{said[what]:.2f}", f"{growth:.2f}", f"{off:+.0f} %", f"{said['peak']:.0f}"]
        yield [*cells, f"{statistics.median(low):.0f} [{min(low):.0f}, {max(low):.0f}]"]


def table(title, rows):
    header = ["MiB", "predicted", "measured", "off", "peak predicted", "peak measured"]
    body = [header, ["---"] * len(header), *rows]
    return "\n".join([f"**{title}**", "", *("| " + " | ".join(cells) + " |" for cells in body)]) + "\n"


def main():
    arguments = parse()
    if arguments.point:
        kind, name, tasks, steps = arguments.point
        print(json.dumps({"measured": measured, "predicted": predicted}[kind](name, int(tasks), int(steps))))
        return
    tables = []
    # Some at a time: nothing is timed.
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for what, cases in (("per_step", STEPS), ("per_task", TASKS)):
            title = "Growth by an inner step" if what == "per_step" else "Growth by a task"
            tables.append(table(title, list(lines(pool, cases, arguments.runs, what))))
            print(tables[-1], flush=True)
    if arguments.update_readme:
        report.update(HERE / "README.md", "\n".join(tables), START, END)


if __name__ == "__main__":
    main()
