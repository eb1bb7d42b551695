"""What does a report after several numbers of steps cost, beside one evaluation after the greatest of them?

    python -m benchmarks.evaluation                     # a table; about two minutes
    python -m benchmarks.evaluation --update-readme     # and puts it into README.md here

`evaluate_episodes(steps=(0, 1, 5, 10))` adapts each task once, by ten steps, and judges it at four stations.
`MetaModel.evaluate` with ten steps judges it at one. So the first should cost what the second does and three passes of
the queries more. One pass is measured by itself: a call of a `MetaModel` that makes no step, without loss and metrics.

The kinds have bursts in turn, so that what else the machine does falls on all of them. Every burst evaluates all
tasks, after one that was not counted and traced the step. Counted is processor time: walls are either t or 2 t where
both threads happen to share a core.
"""

import argparse
import pathlib
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

import keras_maml
from benchmarks import nets, report, rows
from benchmarks.implementations import keras_models
from keras_maml.evaluation import Evaluator

HERE = pathlib.Path(__file__).parent
STEPS = (0, 1, 5, 10)
QUERIES, TASKS = 15, 8  # queries a class, tasks a batch
START, END = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="bursts of each kind, in turn")
    parser.add_argument("--tasks", type=int, default=64, help="tasks of an evaluation")
    parser.add_argument("--width", type=int, default=64, help="filters of a convolution")
    parser.add_argument("--nets", nargs="+", default=["strided", "pooled"], choices=["strided", "pooled"])
    parser.add_argument("--update-readme", action="store_true", help="put the table into README.md here")
    return parser.parse_args()


def dataset_of(tasks):
    """5-way 1-shot episodes of 28 x 28 pixels with 15 queries a class, in memory."""
    random = np.random.default_rng(0)
    supports, queries = rows.WAYS, rows.WAYS * QUERIES
    labels = np.tile(np.arange(rows.WAYS, dtype="int32"), (tasks, 1))
    x = {
        "support_x": random.normal(size=(tasks, supports, 28, 28, 1)).astype("float32"),
        "support_y": labels,
        "query_x": random.normal(size=(tasks, queries, 28, 28, 1)).astype("float32"),
    }
    return tf.data.Dataset.from_tensor_slices((x, np.repeat(labels, QUERIES, 1))).batch(TASKS).cache()


def compiled(net, weights, evaluation_steps):
    algorithm = keras_maml.MAML(0.02, steps=1, evaluation_steps=evaluation_steps)
    meta_model = keras_maml.MetaModel(keras_models.build(net, weights), algorithm)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    meta_model.compile("adam", loss, metrics=["accuracy"])
    return meta_model


def kinds(net, tasks):
    """What is measured, each a function of no argument that evaluates all tasks."""
    weights = rows.Row("", "", net, TASKS, 1, rows.WAYS, rows.WAYS * QUERIES, 0.02).weights()
    data = dataset_of(tasks)
    ten, none = (compiled(net, weights, steps) for steps in (STEPS[-1], 0))
    several = Evaluator(ten, STEPS)
    step = tf.function(lambda x: tf.reduce_sum(none(x)))
    return {
        "report": lambda: several.report(data, tasks, verbose=0),
        "ten": lambda: ten.evaluate(data, verbose=0),
        "pass": lambda: [step(x).numpy() for x, _ in data],
    }


def seconds_of(functions, rounds):
    """`{name: [seconds of processor time, one a burst]}`."""
    for function in functions.values():
        function()  # traces
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            seconds[name].append(time.process_time() - begin)
    return seconds


def line_of(title, seconds, tasks):
    """A row of the table: milliseconds a task, and the ratio of the medians."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    expected = median["ten"] + (len(STEPS) - 1) * median["pass"]

    def cell(name):
        low, middle, high = (1000 * f(seconds[name]) / tasks for f in (min, statistics.median, max))
        return f"{middle:.1f} [{low:.1f}, {high:.1f}]"

    return f"| {title} | {cell('report')} | {cell('ten')} | {cell('pass')} | {median['report'] / expected:.2f} |"


def main():
    arguments = parse()
    keras_maml.set_threads(tasks=TASKS)
    lines = [
        f"Milliseconds of processor time a task, of {arguments.tasks} tasks, medians of {arguments.rounds} bursts "
        "[least, greatest]",
        "",
        "| net | report after 0, 1, 5, 10 steps | evaluate, 10 steps | query pass | report / (evaluate + 3 passes) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in arguments.nets:
        net = nets.Net(kind, (28, 28, 1), outputs=rows.WAYS, width=arguments.width)
        seconds = seconds_of(kinds(net, arguments.tasks), arguments.rounds)
        lines.append(line_of(f"conv4-{arguments.width} {kind}", seconds, arguments.tasks))
        print("\n".join(lines if kind == arguments.nets[0] else lines[-1:]), flush=True)
    if arguments.update_readme:
        report.update(HERE / "README.md", "\n".join(lines) + "\n", START, END)


if __name__ == "__main__":
    main()
