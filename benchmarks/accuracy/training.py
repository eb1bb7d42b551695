"""One run: a row trained for some seconds and judged on the test tasks."""

import math
import os
import pathlib
import platform
import time

import keras
import numpy as np

import keras_maml
from benchmarks.accuracy import suites
from keras_maml.evaluation import Evaluator
from keras_maml.recipes import baselines
from keras_maml.selection import Head

MOMENTS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of the time at which validation tasks are judged
LAST = 0.01  # what is left of the outer rate at the end of a cosine
TEST_QUERIES = 15
CORES = 2  # whose time is counted


class Clock(keras.callbacks.Callback):
    """Stops `fit` after some seconds of training steps, drives all schedules by them, and judges at some moments.

    A second is two seconds of processor time: what two cores do in one that they have for themselves. Wall time would
    count what else the machine does. The first step, which traces and compiles, and what is judged do not count.

    Args:
        seconds: above 0.
        row: the `Row`.
        judge: a function of no argument that gives a dict.
        anneal: a function of the share of time that has passed.
    """

    def __init__(self, seconds, row, judge, anneal):
        super().__init__()
        self.seconds, self.row, self.judge, self.anneal = seconds, row, judge, anneal
        self.spent = self.wall = self.first = self.judging = 0.0
        self.steps = self.left_out = 0
        self.curve = []
        self._moments = [share * seconds for share in MOMENTS]

    def on_train_batch_begin(self, batch, logs=None):
        share = min(self.spent / self.seconds, 1.0)
        self.model.optimizer.learning_rate = self.row.rate * factor(self.row.schedule, share)
        self.anneal(share)
        self._begin, self._processor_begin = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])  # waits for the step
        took = time.perf_counter() - self._begin
        if self.steps == 0:
            self.first = took
        else:
            self.wall += took
            self.spent += (time.process_time() - self._processor_begin) / CORES
        self.steps += 1
        self.left_out = int(logs.get("non_finite_tasks", 0))
        due = [moment for moment in self._moments if moment <= self.spent]
        if due:
            self._moments = self._moments[len(due) :]
            begin = time.perf_counter()
            self.curve.append({"seconds": self.spent, "steps": self.steps, "training_loss": loss, **self.judge()})
            self.judging += time.perf_counter() - begin
        self.model.stop_training = self.spent >= self.seconds


def factor(schedule, share):
    """What the outer rate is multiplied with after a share of the time, in [0, 1]."""
    if schedule == "cosine":
        return LAST + (1 - LAST) * (1 + math.cos(math.pi * share)) / 2
    return {"linear": 1 - share, "constant": 1.0}[schedule]


def run(suite, row, seed, minutes, tasks, splits, source):
    """Trains and judges.

    Args:
        suite: a `Suite`.
        row: one of its rows.
        seed: of weights and training episodes.
        minutes: of training.
        tasks: of the test, at least 2.
        splits: `{"train" | "validation" | "test": (images, labels)}`.
        source: what they are called.

    Returns:
        A dict for JSON, with the report of the test.
    """
    keras.utils.set_random_seed(seed)
    begin, load = time.perf_counter(), os.getloadavg()
    sizes = {"ways": suite.ways, "shots": suite.shots, "queries": TEST_QUERIES}
    fixed = keras_maml.episodes.fixed
    few = min(100, tasks)
    validation = episodes(splits["validation"], tasks=min(20, few), seed=fixed(few, seed=1), **sizes)
    test = episodes(splits["test"], tasks=min(20, tasks), seed=fixed(tasks, seed=2), **sizes)

    trained, data, learner = prepare(suite, row, seed, splits)
    last = evaluation_steps(learner.algorithm)
    evaluator = Evaluator(learner, (last,))

    def judge():
        found = evaluator.report(validation, few, verbose=0).summary("accuracy")
        return {"accuracy": found.mean, "margin": found.margin}

    anneal = getattr(getattr(trained, "meta_gradient", None), "anneal", lambda share: None)
    clock = Clock(60 * minutes, row, judge, anneal)
    if row.training == "none":
        clock.curve.append({"seconds": 0.0, "steps": 0, **judge()})
    else:
        # One epoch that never ends by itself: `steps_per_epoch` has to be some number.
        trained.fit(data, steps_per_epoch=2**31 - 1, shuffle=False, verbose=0, callbacks=[clock])
    middle = time.perf_counter()
    report = keras_maml.evaluate_episodes(
        learner, test, tasks, sorted({0, learner.algorithm.steps, last}), verbose=0
    )
    return {
        "settings": settings(suite, row, minutes, tasks, source),
        "seed": seed,
        "steps_made": clock.steps,
        "non_finite_tasks": clock.left_out,
        "judged_after": last,
        "curve": clock.curve,
        "seconds": {
            "training": clock.spent,
            "wall": clock.wall,
            "first_step": clock.first,
            "validation": clock.judging,
            "test": time.perf_counter() - middle,
            "all": time.perf_counter() - begin,
        },
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_before": load,
            "load_after": os.getloadavg(),
        },
        "report": report.to_dict(),
    }


def settings(suite, row, minutes, tasks, source):
    """What a run depends on beside its seed and the versions of libraries."""
    sizes = {"ways": suite.ways, "shots": suite.shots, "minutes": minutes, "test_tasks": tasks}
    return {**row.to_dict(), **sizes, "data": source}


def prepare(suite, row, seed, splits):
    """`(model to fit, its data, MetaModel to judge)`: one and the same model, or two on the same layers."""
    if row.training == "episodes":
        net, algorithm = suites.make_net(row, suite.ways), suites.make_algorithm(row)
        learner = keras_maml.MetaModel(net, algorithm, skip_non_finite=True)
        learner.compile(optimizer_of(row), cross_entropy(), metrics=["accuracy"])
        return learner, training_episodes(suite, row, seed, splits), learner
    options = dict(row.settings)
    body = suites.make_net(row, suite.ways if row.training == "joint" else None)
    if row.algorithm == "nearest_centroid":
        learner = baselines.nearest_centroid(body, suite.ways, **options)
    elif row.training == "joint":
        learner = baselines.fine_tuning(body, loss=cross_entropy(), metrics=["accuracy"], **options)
    else:
        layers = Head() if options.pop("head") else None
        learner = baselines.fine_tuning(body, ways=suite.ways, layers=layers, **options)
    if row.training == "none":
        return None, None, learner
    if row.training == "joint":
        model, data = body, baselines.examples_of_tasks(training_episodes(suite, row, seed, splits))
    else:
        images, labels = splits["train"]
        model = baselines.classifier(body, len(np.unique(labels)))
        data = baselines.examples_of_classes(images, labels, batch_size=min(128, len(labels)), seed=seed)
    model.compile(optimizer_of(row), cross_entropy())
    return model, data, learner


def training_episodes(suite, row, seed, splits):
    sizes = {"ways": suite.ways, "shots": suite.shots, "queries": row.queries, "tasks": row.tasks}
    return episodes(splits["train"], seed=seed, **sizes)


def episodes(split, **sizes):
    return keras_maml.episodes.from_arrays(*split, **sizes)


def optimizer_of(row):
    return {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[row.optimizer](row.rate)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def evaluation_steps(algorithm):
    return algorithm.steps if algorithm.evaluation_steps is None else algorithm.evaluation_steps


def omniglot(data_dir, cache):
    """The splits, decoded once and then read from a file."""
    cache = pathlib.Path(cache)
    if not cache.exists():
        splits = keras_maml.datasets.omniglot(data_dir, download=False)
        arrays = {f"{name}_{part}": a for name, pair in splits.items() for part, a in zip("xy", pair, strict=True)}
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_suffix(".unfinished.npz")
        np.savez(unfinished, **arrays)
        unfinished.replace(cache)
    with np.load(cache) as read:
        return {name: (read[f"{name}_x"], read[f"{name}_y"]) for name in ("train", "validation", "test")}


def made_data():
    """Splits of 24 classes each: a picture for each class, under noise. To try the programme."""
    random = np.random.default_rng(0)
    splits = {}
    for first, name in ((0, "train"), (24, "validation"), (48, "test")):
        pictures = random.uniform(0, 255, (24, 1, 28, 28, 1))
        drawings = np.clip(pictures + random.normal(0, 120, (24, 20, 28, 28, 1)), 0, 255)
        splits[name] = drawings.reshape(480, 28, 28, 1).astype("uint8"), np.repeat(np.arange(first, first + 24), 20)
    return splits
