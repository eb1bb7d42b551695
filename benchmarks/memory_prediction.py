"""Predicted against measured memory of a meta-step: `python -m benchmarks.memory_prediction`.

Every measured point is a process of its own, `python -m benchmarks.memory_prediction measure ROW T K`, that prints what
its peak is above the resident memory that it had before it built a model.
"""

import ctypes
import dataclasses
import json
import sys
import time

from benchmarks.rows import ROWS

REPEATS = 3


def batch(row):
    from benchmarks.implementations import keras_maml_fit as ours
    from benchmarks.worker import cast

    ours.KerasMaml.prepare(row)
    return ours.as_batch(cast(row.episodes(), "float32"))


def meta_step(row):
    """`(meta_model, x, y)` of a row."""
    import keras
    import keras_maml
    from benchmarks.implementations import keras_models
    from benchmarks.worker import cast

    algorithm = keras_maml.MAML(learning_rate=row.learning_rate, steps=row.steps)
    meta_model = keras_maml.MetaModel(keras_models.build(row.net, cast(row.weights(), "float32")), algorithm)
    meta_model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=keras_models.loss(row))
    return meta_model


def row_of(name, tasks, steps):
    row = ROWS[name]
    return dataclasses.replace(row, tasks=int(tasks), steps=int(steps))


def measure(name, tasks, steps, shape=None):
    import keras_maml  # noqa: F401
    from benchmarks.worker import memory_mb

    row = row_of(name, tasks, steps)
    if shape:
        row = dataclasses.replace(row, net=dataclasses.replace(row.net, input_shape=tuple(map(int, shape.split(",")))))
    x, y = batch(row)
    ctypes.CDLL(None).malloc_trim(0)
    before = memory_mb()[1]
    meta_model = meta_step(row)
    for _ in range(REPEATS):
        meta_model.train_on_batch(x, y)
    print(json.dumps({"growth_mb": memory_mb()[0] - before}))


def predict(name, tasks, steps):
    from keras_maml.memory import predict_memory

    row = row_of(name, tasks, steps)
    x, y = batch(row)
    begin = time.perf_counter()
    prediction = predict_memory(meta_step(row), x, y)
    print(json.dumps({**dataclasses.asdict(prediction), "seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    {"measure": measure, "predict": predict}[sys.argv[1]](*sys.argv[2:])
