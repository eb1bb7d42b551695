"""How fast do episodes come, on one core, beside reading the same bytes and nothing else?

    python -m benchmarks.episodes                       # a table; about three minutes
    python -m benchmarks.episodes --update-readme       # and puts it into README.md here

5-way 1-shot episodes with 15 queries a class, 32 a batch, so 80 examples each. Every way of making them has bursts of
`--burst-seconds` in turn, so that what else the machine does falls on all of them; between its bursts its pipeline is
not there, as full buffers would count for speed.

The measure is a bare `tf.gather` of rows that are known beforehand, in the same run. The rivals are what people write:
a Python generator under `Dataset.from_generator`, and a `tf.data` pipeline that shuffles every class and interleaves
the classes drawn for an episode.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

# Before TensorFlow starts: its thread pools are as large as the number of cores that it sees.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks import report  # noqa: E402
from keras_maml import episodes  # noqa: E402

HERE = pathlib.Path(__file__).parent
WAYS, SHOTS, QUERIES, TASKS = 5, 1, 15, 32
SAMPLING = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "tasks": TASKS, "seed": 0}
START, END = "<!-- episodes: begin -->", "<!-- episodes: end -->"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each, in turn")
    parser.add_argument("--burst-seconds", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=30_000, help="of 28 x 28 pixels; of 84 x 84 x 3 a third of it")
    parser.add_argument("--update-readme", action="store_true", help="put the table into README.md here")
    return parser.parse_args()


def bare_gather(x, labels):
    """Batches of supports and queries of rows that are known beforehand."""
    random = np.random.default_rng(0)
    each = SHOTS + QUERIES
    batches = [tf.constant(random.integers(0, len(x), (TASKS, WAYS * each))) for _ in range(64)]
    images = tf.constant(x)

    @tf.function
    def gather(rows):
        return tf.gather(images, rows[:, : WAYS * SHOTS]), tf.gather(images, rows[:, WAYS * SHOTS :])

    while True:
        for rows in batches:
            yield gather(rows)


def python_generator(x, labels):
    """Episodes by NumPy, one at a time, under `Dataset.from_generator`."""
    random = np.random.default_rng(0)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    label = np.repeat(np.arange(WAYS), SHOTS), np.repeat(np.arange(WAYS), QUERIES)

    def generate():
        while True:
            classes = random.choice(len(rows), WAYS, replace=False)
            picks = np.stack([random.choice(rows[c], SHOTS + QUERIES, replace=False) for c in classes])
            yield x[picks[:, :SHOTS].ravel()], label[0], x[picks[:, SHOTS:].ravel()], label[1]

    shape, dtype = x.shape[1:], x.dtype
    signature = tuple(
        spec
        for size in (WAYS * SHOTS, WAYS * QUERIES)
        for spec in (tf.TensorSpec((size, *shape), dtype), tf.TensorSpec((size,), tf.int64))
    )
    return tf.data.Dataset.from_generator(generate, output_signature=signature).batch(TASKS).prefetch(2)


def class_interleave(x, labels):
    """A dataset for every class, shuffled; of each episode's classes, `SHOTS + QUERIES` elements in turn."""
    names = np.unique(labels)
    each = SHOTS + QUERIES
    by_class = tf.ragged.constant([np.flatnonzero(labels == name).tolist() for name in names], dtype=tf.int64)
    images = tf.constant(x)

    def of_class(name):
        rows = by_class[name]
        return tf.data.Dataset.from_tensor_slices(rows).shuffle(1000).take(each).map(lambda row: tf.gather(images, row))

    def episode(_):
        classes = tf.data.Dataset.range(len(names)).shuffle(len(names)).take(WAYS)
        return classes.interleave(of_class, cycle_length=WAYS, block_length=each).batch(WAYS * each)

    return tf.data.Dataset.range(2**40).interleave(episode, cycle_length=4).batch(TASKS).prefetch(2)


def make_images(count, shape, dtype):
    """Images of 20 a class, or 600 for the large ones, and their labels."""
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) // (20 if shape[-1] == 1 else 600)
    return (images / 255).astype(dtype) if dtype == "float32" else images, labels


def on_disk(x, folder, name):
    array = np.memmap(folder / name, x.dtype, "w+", shape=x.shape)
    array[:] = x
    array.flush()
    return np.memmap(folder / name, x.dtype, "r", shape=x.shape)


def write_folder(x, labels, folder):
    for i, (image, label) in enumerate(zip(x, labels, strict=True)):
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    return folder


def batches_per_second(datasets, rounds, seconds):
    """Episodes a second of each, `{name: [one a burst]}`."""
    speeds = {name: [] for name in datasets}
    for _ in range(rounds):
        for name, dataset in datasets.items():
            iterator = iter(dataset)
            for _ in range(20):  # the first shuffles and fills buffers, which then are full or empty as they will
                batch = next(iterator)
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds or not count:
                batch = next(iterator)
                count += 1
            float(tf.cast(tf.reshape(tf.nest.flatten(batch)[0], (-1,))[0], tf.float32))  # wait for the last
            speeds[name].append(TASKS * count / (time.perf_counter() - begin))
            del iterator
    return speeds


def table(title, speeds):
    measure = statistics.median(speeds["bare tf.gather"])
    lines = [f"**{title}**", "", "| | episodes a second | of the bare gather |", "| --- | --- | --- |"]
    for name, values in speeds.items():
        median = statistics.median(values)
        spread = f"[{min(values):,.0f}, {max(values):,.0f}]"
        lines.append(f"| {name} | {median:,.0f} {spread} | {100 * median / measure:.0f} % |")
    return "\n".join(lines) + "\n"


def first_batch(make):
    begin = time.perf_counter()
    next(iter(make()))
    return time.perf_counter() - begin


def first_batches(sources):
    lines = ["**Seconds to the first batch**", "", "| | seconds |", "| --- | --- |"]
    for name, make in sources.items():
        seconds = [first_batch(make) for _ in range(3)]
        lines.append(f"| {name} | {seconds[0]:.2f}, then {statistics.median(seconds[1:]):.2f} |")
    return "\n".join(lines) + "\n"


def kinds_of_arrays(x, labels, memmap):
    """What is raced on bytes of all sizes."""
    return {
        "bare tf.gather": bare_gather(x, labels),
        "from_arrays": episodes.from_arrays(x, labels, **SAMPLING),
        "from_arrays, memmap": episodes.from_arrays(memmap, labels, **SAMPLING),
        "Python generator": python_generator(x, labels),
    }


def kinds(x, labels, disk):
    """What is raced on small bytes: all sources and all that an episode may have."""
    arrays = lambda **more: episodes.from_arrays(x, labels, **SAMPLING | more)  # noqa: E731
    unseeded = {"seed": None}
    sources = {"a": x, "b": x[::-1]}
    parts = {name: episodes.from_arrays(source, labels, **SAMPLING | unseeded) for name, source in sources.items()}
    flipped = episodes.augment(arrays(), keras.layers.RandomFlip())
    folder = episodes.from_folder(disk["folder"], 28, channels=1, cache=disk["cache"], **SAMPLING)
    return {
        **kinds_of_arrays(x, labels, disk["memmap"]),
        "from_folder, from its cache": folder,
        "from_arrays, 3 to 5 ways, padded": arrays(ways=(3, 5)),
        "mixture of two": episodes.mixture(parts, seed=0),
        "augment by RandomFlip": flipped,
        "interleave of classes": class_interleave(x, labels),
    }


def main():
    arguments = parse()
    tables = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        settings = arguments.rounds, arguments.burst_seconds
        x, labels = make_images(arguments.images, (28, 28, 1), "uint8")
        disk = {"memmap": on_disk(x, folder, "small"), "cache": folder / "cache.npy"}
        disk["folder"] = write_folder(x, labels, folder / "images")
        read = {"channels": 1, **SAMPLING}
        tables.append(
            first_batches(
                {
                    f"from_arrays, {len(x):,} images of 28 x 28": lambda: episodes.from_arrays(x, labels, **SAMPLING),
                    f"from_folder, {len(x):,} PNG files": lambda: episodes.from_folder(disk["folder"], 28, **read),
                    "from_folder with a cache": lambda: episodes.from_folder(
                        disk["folder"], 28, cache=disk["cache"], **read
                    ),
                }
            )
        )
        print(tables[-1], flush=True)
        tables.append(table("28 x 28, uint8", batches_per_second(kinds(x, labels, disk), *settings)))
        print(tables[-1], flush=True)
        for title, shape, dtype, count in (
            ("28 x 28, float32", (28, 28, 1), "float32", arguments.images),
            ("84 x 84 x 3, uint8", (84, 84, 3), "uint8", arguments.images // 3),
        ):
            x, labels = make_images(count, shape, dtype)
            raced = kinds_of_arrays(x, labels, on_disk(x, folder, title))
            tables.append(table(title, batches_per_second(raced, *settings)))
            print(tables[-1], flush=True)
    if arguments.update_readme:
        report.update(HERE / "README.md", "\n".join(tables), START, END)


if __name__ == "__main__":
    main()
