"""What does autotuning by tf.data bring to datasets of episodes, and what does it cost?

    python -m benchmarks.autotuning        # two tables; three minutes

Every measure is taken of both kinds in turn: episodes a second, on all cores, and the seconds that `del iterator` takes
after a second of life.
"""

import statistics
import time

import numpy as np
import tensorflow as tf

from keras_maml import episodes

LIFE, TIMES, ROUNDS, BURST = 1.0, 50, 9, 0.7
SAMPLING = {"ways": 5, "shots": 1, "queries": 15, "tasks": 32, "seed": 0}
ARRAYS = {
    "28 x 28, uint8": ((20_000, 28, 28, 1), "uint8"),
    "28 x 28, float32": ((20_000, 28, 28, 1), "float32"),
    "84 x 84 x 3, uint8": ((6_000, 84, 84, 3), "uint8"),
}


def kinds(shape, dtype):
    """`{name: dataset}`: as it is made, and tuned."""
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).astype(dtype)
    dataset = episodes.from_arrays(images, np.arange(len(images)) // 20, **SAMPLING)
    options = tf.data.Options()
    options.autotune.enabled = True
    return {"as it is": dataset, "autotuned": dataset.with_options(options)}


def speed(dataset):
    """Episodes a second."""
    iterator = iter(dataset)
    for _ in range(5):
        next(iterator)
    begin, batches = time.perf_counter(), 0
    while time.perf_counter() - begin < BURST:
        next(iterator)
        batches += 1
    return SAMPLING["tasks"] * batches / (time.perf_counter() - begin)


def letting_go(dataset):
    """Seconds that an iterator takes to go after `LIFE` seconds."""
    iterator = iter(dataset)
    next(iterator)
    time.sleep(LIFE)
    begin = time.perf_counter()
    del iterator
    return time.perf_counter() - begin


def in_turn(measure, datasets, times):
    """`{name: [one of each time]}`."""
    found = {name: [] for name in datasets}
    for _ in range(times):
        for name, dataset in datasets.items():
            found[name].append(measure(dataset))
    return found


def main():
    print("| images | episodes a second | autotuned | ratio |", "| --- | --- | --- | --- |", sep="\n")
    for name, (shape, dtype) in ARRAYS.items():
        plain, tuned = map(statistics.median, in_turn(speed, kinds(shape, dtype), ROUNDS).values())
        print(f"| {name} | {plain:,.0f} | {tuned:,.0f} | {plain / tuned:.2f} |", flush=True)
    print(f"\nIterators let go after {LIFE:g} s of life, {TIMES} of each:\n")
    print("| dataset | slower than 0.1 s | seconds each, mean | longest |", "| --- | --- | --- | --- |", sep="\n")
    for name, seconds in in_turn(letting_go, kinds(*ARRAYS["28 x 28, uint8"]), TIMES).items():
        slow = sum(value > 0.1 for value in seconds)
        print(f"| {name} | {slow} | {statistics.mean(seconds):.2f} | {max(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
