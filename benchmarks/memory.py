"""Peak memory of keras_maml: does it grow with inner steps, with steps at evaluation, with tasks?

Every point is a process of its own, `python -m benchmarks.memory CASE VALUE`, that prints what its peak is above the
resident memory that it had before it built a model.
"""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np

from benchmarks import nets
from benchmarks.processes import ROOT
from benchmarks.rows import WAYS

REPEATS = 3  # meta-steps, or evaluations, of a point
IMAGES = nets.Net("pooled", (84, 84, 3), outputs=WAYS, width=32)


@dataclasses.dataclass(frozen=True)
class Table:
    """Peaks of some cases, for a row of values of one setting."""

    title: str
    axis: str
    values: tuple
    cases: dict  # title of a variant -> key of CASES


TABLES = (
    Table(
        "one task of 25 supports and 5 queries, conv4-32, 84x84x3",
        "K",
        (1, 2, 5, 10, 20),
        {"Unrolled()": "steps", "Unrolled(rematerialize=True)": "steps_rematerialized"},
    ),
    Table(
        "evaluation, 4 tasks of 5 supports and 75 queries, conv4-32, 84x84x3",
        "K",
        (1, 100),
        {"evaluation_steps=K": "evaluation"},
    ),
    Table(
        "2 million weights, dense, 2 supports and 2 queries a task",
        "T",
        (4, 64),
        {"task_mapping=Parallel()": "tasks"},
    ),
)


def measure(log):
    """All tables, with `"variants": {title: [{"growth_mb"} or {"reason"}, one for each value]}`."""

    def point(case, value):
        command = [sys.executable, "-m", "benchmarks.memory", case, str(value)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        return json.loads(done.stdout) if done.returncode == 0 else {"reason": f"ended with status {done.returncode}"}

    # Some at a time: nothing is timed.
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [
            {title: [pool.submit(point, case, value) for value in table.values] for title, case in table.cases.items()}
            for table in TABLES
        ]
        return [
            {
                "title": table.title,
                "axis": table.axis,
                "values": list(table.values),
                "variants": {title: [point.result() for point in points] for title, points in variants.items()},
            }
            for table, variants in zip(TABLES, futures, strict=True)
        ]


def random_episodes(tasks, supports, queries):
    random = np.random.default_rng(0)
    batch = {}
    for part, count in (("support", supports), ("query", queries)):
        batch[f"{part}_x"] = random.normal(size=(tasks, count, *IMAGES.input_shape)).astype("float32")
        batch[f"{part}_y"] = np.tile(np.arange(count, dtype="int32") % WAYS, (tasks, 1))
    return batch, batch.pop("query_y")


def image_model():
    from benchmarks.implementations import keras_models

    random = np.random.default_rng(0)
    weights = {name: 0.1 * random.normal(size=shape) for name, shape in IMAGES.parameters().items()}
    return keras_models.build(IMAGES, weights)


def steps(count, rematerialize=False):
    """Meta-steps with K inner steps."""
    import keras_maml

    batch = random_episodes(tasks=1, supports=25, queries=5)
    estimator = keras_maml.meta_gradients.Unrolled(rematerialize=rematerialize)
    rule = keras_maml.learning_rules.SGD(0.01)
    algorithm = keras_maml.Algorithm(rule=rule, meta_gradient=estimator, steps=count)
    meta_model = keras_maml.MetaModel(image_model(), algorithm)
    meta_model.compile("adam", _cross_entropy())
    return lambda: meta_model.train_on_batch(*batch)


def evaluation(count):
    """Evaluations with K inner steps of a model that is trained with one."""
    import keras_maml

    batch = random_episodes(tasks=4, supports=5, queries=75)
    algorithm = keras_maml.MAML(learning_rate=0.01, steps=1, evaluation_steps=count)
    meta_model = keras_maml.MetaModel(image_model(), algorithm)
    meta_model.compile("adam", _cross_entropy())
    return lambda: meta_model.test_on_batch(*batch)


def tasks(count):
    """Meta-steps of T tasks of a model whose gradients are 8 MB a task."""
    import keras

    import keras_maml

    inputs = keras.Input((1000,))
    hidden = inputs
    for _ in range(2):
        hidden = keras.layers.Dense(1000, "tanh", use_bias=False)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    mapping = keras_maml.task_mapping.Parallel()
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(learning_rate=0.01, steps=1), mapping)
    meta_model.compile("sgd", "mse")
    x, y = np.ones((count, 2, 1000), "float32"), np.ones((count, 2, 1), "float32")
    return lambda: meta_model.train_on_batch({"support_x": x, "support_y": y, "query_x": x}, y)


def steps_rematerialized(count):
    return steps(count, rematerialize=True)


def _cross_entropy():
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


CASES = {
    "steps": steps,
    "steps_rematerialized": steps_rematerialized,
    "evaluation": evaluation,
    "tasks": tasks,
}


def main(case, value):
    import keras_maml  # noqa: F401  what importing takes is not the model's
    from benchmarks.worker import memory_mb

    before = memory_mb()[1]
    run = CASES[case](int(value))
    for _ in range(REPEATS):
        run()
    peak = memory_mb()[0]
    print(json.dumps({"peak_mb": peak, "growth_mb": peak - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
