"""Builders of episode datasets: `tf.data` pipelines in which an episode is a function of its index.

An element is one batch of `T` tasks, an ordinary Keras `(x, y)`:

    x = {"support_x": (T, S, ...), "support_y": (T, S), "query_x": (T, Q, ...)}
    y = query_y: (T, Q)

The invariant: task `t` of batch `b` is episode `index = start + b * tasks + t`, and an episode
depends on the seed and its index alone. So it stays the same whatever the batch size, the number of
batches and the order in which parallel calls finish, and a run that stopped goes on with `start=`.
A generator with state, or one stateless draw for a whole batch, would tie an episode to its batch.
"""

import numbers

import keras
import numpy as np
import tensorflow as tf


def from_arrays(images, labels, ways, shots, queries, tasks, seed=None, batches=None, start=0):
    """Episodes of a classification problem whose examples lie in memory.

    An episode draws `ways` classes without replacement, and `shots + queries` examples of each
    without replacement, of which the first `shots` are support. Every ordered draw is as likely, so
    the label that a class gets inside an episode is random, and so is the order of its examples.
    Rows are sorted by label: `support_y = [0] * shots + [1] * shots + ...`. The support of an
    episode does not depend on `queries`.

    Images keep their dtype and are cast by the model: leave them in `uint8`, a quarter of the size
    of `float32`, and begin the model with `keras.layers.Rescaling(1 / 255)`.

    Args:
        images: `(N, ...)`, or a structure (dict, tuple) of such arrays for several inputs.
        labels: `(N,)`, integers of any value. Classes may differ in their number of examples.
        ways: classes of an episode, at least 2.
        shots: support examples a class, at least 1; `S = ways * shots`.
        queries: query examples a class, at least 1; `Q = ways * queries`.
        tasks: episodes a batch, `T`, at least 1.
        seed: 0 or more: every iterator yields the same episodes. `None`: every iterator, so every
            pass over the dataset, yields fresh ones.
        batches: length, at least 1. `None`: infinite; `fit` then needs `steps_per_epoch`.
        start: index of the first episode, 0 or more. To resume a run: `batches_done * tasks`.

    Returns:
        A `tf.data.Dataset` of `(x, y)` as above, the labels `int32` in `0 .. ways - 1`.

    Raises:
        ValueError: if an argument is out of range, the arrays do not fit each other, a value is not
            finite, or classes, or examples of a class, are too few.

    References:
        - Vinyals et al. 2016, "Matching networks for one shot learning", arXiv:1606.04080
    """
    _check_counts(tasks, seed, batches, start, ways, shots, queries)
    _check_labels(np.asarray(labels))
    classes, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    _check_sizes(classes, counts, ways, shots, queries)
    images = keras.tree.lists_to_tuples(images)  # tf.data would stack a list
    for path, leaf in keras.tree.flatten_with_path(images):
        name = "images" + "".join(f"[{key!r}]" for key in path)
        _check_images(name, np.asarray(leaf), len(class_of))

    with tf.init_scope(), tf.device("CPU:0"):
        # The map captures eager tensors as inputs; a constant of its graph is limited to 2 GB.
        images = keras.tree.map_structure(lambda leaf: tf.constant(np.asarray(leaf)), images)
        by_class = tf.constant(np.argsort(class_of, kind="stable"), tf.int64)
        first = tf.constant(np.cumsum(counts) - counts, tf.int64)
        counts = tf.constant(counts, tf.int64)

    def draw_rows(seed, index):
        draws = uniform(seed, index, ways * (1 + shots + queries))
        chosen = _without_replacement(draws[:ways], len(classes))  # (ways, T)
        draws = tf.reshape(draws[ways:], (shots + queries, ways, -1))
        picks = _without_replacement(draws, tf.gather(counts, chosen))
        rows = tf.gather(by_class, tf.gather(first, chosen) + picks)
        return tf.transpose(rows, (2, 1, 0))  # (T, ways, shots + queries)

    def take(rows):
        label = np.tile(np.repeat(np.arange(ways), rows.shape[2]), (tasks, 1))
        rows = tf.reshape(rows, label.shape)
        x = keras.tree.map_structure(lambda leaf: tf.gather(leaf, rows), images)
        return x, tf.constant(label, tf.int32)

    def read(rows):
        support_x, support_y = take(rows[:, :, :shots])
        query_x, query_y = take(rows[:, :, shots:])
        return {"support_x": support_x, "support_y": support_y, "query_x": query_x}, query_y

    # Drawing rows is many tiny ops, reading them a few large ones: so 8 batches are drawn at once.
    rows = from_function(draw_rows, tasks, seed, batches, start, block=8)
    return rows.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def from_tfds(
    name_or_builder,
    split,
    ways,
    shots,
    queries,
    tasks,
    seed=None,
    batches=None,
    start=0,
    image_size=None,
    data_dir=None,
    download=True,
):
    """Episodes of a supervised tensorflow-datasets problem, read into memory once.

    Most datasets have the same classes in every split. To judge on new classes, read the arrays by
    `read_tfds`, part them by label, and pass each part to `from_arrays`.

    Args:
        name_or_builder: see `read_tfds`, and so `split`, `image_size`, `data_dir`, `download`.
        ways: see `from_arrays`, and so the other arguments.

    Returns:
        A `tf.data.Dataset`, see `from_arrays`. Raises what `from_arrays` and `read_tfds` do.
    """
    _check_counts(tasks, seed, batches, start, ways, shots, queries)  # before the dataset is read
    images, labels = read_tfds(name_or_builder, split, image_size, data_dir, download)
    return from_arrays(images, labels, ways, shots, queries, tasks, seed, batches, start)


def read_tfds(name_or_builder, split, image_size=None, data_dir=None, download=True):
    """Reads one split of a supervised tensorflow-datasets problem into memory.

    Args:
        name_or_builder: a name such as `"omniglot"`, or a builder: any object with
            `as_dataset(split=, as_supervised=True)`.
        split: a split as tensorflow-datasets writes it, such as `"train"` or `"train[:50%]"`.
        image_size: pixels, `int` or `(height, width)`: every image is resized to it once, with an
            antialiased Lanczos kernel of radius 3, in its own dtype. `None`: they have one size.
        data_dir: directory of the prepared dataset; default that of tensorflow-datasets, or of the
            builder.
        download: whether to fetch and prepare a dataset that is not there.

    Returns:
        `(images, labels)`: numpy arrays `(N, height, width, channels)` and `(N,)`.

    Raises:
        ImportError: if a name is given and tensorflow-datasets is not installed.
        ValueError: if the images differ in size, or the dataset is not there.
    """
    if image_size is not None:
        size = np.broadcast_to(image_size, 2).tolist()
        check_whole(1, image_size=min(size))
    builder = name_or_builder
    if isinstance(builder, str):
        try:
            import tensorflow_datasets
        except ImportError as error:
            raise ImportError(
                'tensorflow-datasets is not installed: pip install "keras-maml[datasets]"'
            ) from error
        builder = tensorflow_datasets.builder(builder, data_dir=data_dir)
    elif data_dir is not None:
        raise ValueError(
            f"`data_dir` goes with a dataset name, a builder has its own. Received: {data_dir=}."
        )
    if download and hasattr(builder, "download_and_prepare"):
        builder.download_and_prepare()
    try:
        dataset = builder.as_dataset(split=split, as_supervised=True)
    except AssertionError as error:  # tensorflow-datasets, of files that are not there
        raise ValueError(
            f"Dataset {name_or_builder!r} is not prepared. Received: {data_dir=}, {download=}. Set "
            "`download=True`, or `data_dir` to the directory that holds it."
        ) from error

    def resize(image, label):
        resized = tf.image.resize(image, size, method="lanczos3", antialias=True)
        resized = tf.round(resized) if image.dtype.is_integer else resized
        return tf.saturate_cast(resized, image.dtype), label

    if image_size is not None:
        dataset = dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE)
    for spec in tf.nest.flatten(dataset.element_spec):
        if not spec.shape.is_fully_defined():
            raise ValueError(
                f"The images of {name_or_builder!r} may differ in size. Received: shape "
                f"{spec.shape}. Set `image_size`."
            )
    images, labels = zip(*dataset.batch(1024).prefetch(2).as_numpy_iterator(), strict=True)
    images = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *images)
    return images, np.concatenate(labels)


def from_function(function, tasks, seed=None, batches=None, start=0, block=1):
    """Episodes that a function computes from their indices: the base of every builder here.

        batch[b] = function(seed, start + b * tasks + [0, ..., tasks - 1])

    `keras_maml.datasets.sinusoid` is an example of such a function.

    Args:
        function: `(seed, index) -> element`, of TensorFlow ops: `seed` an `int64` scalar, `index`
            `(T,)` `int64`; `T` is the first axis of all that it returns. Draw by `uniform`, for
            every index at once.
        tasks: see `from_arrays`, and so `seed`, `batches` and `start`.
        block: batches that one call computes, with `index` `(block * T,)`. Changes no episode;
            worth it for small elements, whose time goes in starting ops.

    Returns:
        A `tf.data.Dataset` of what `function` returns.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_counts(tasks, seed, batches, start)
    check_whole(1, block=block)
    positions = tf.data.Dataset.counter()
    if batches is not None:
        positions = positions.take(-(-batches // block))

    def with_fresh_seed(seed, position):
        # Drawn at the first element of an iterator. With both seeds 0 the raw op asks the system,
        # where tf.random.uniform would read the global seed.
        shape, low, high = tf.constant([], tf.int32), np.int64(0), np.int64(2**63 - 1)
        fresh = tf.raw_ops.RandomUniformInt(shape=shape, minval=low, maxval=high, seed=0, seed2=0)
        seed = tf.where(position == 0, fresh, seed)
        return seed, (position, seed)

    if seed is None:
        positions = positions.scan(np.int64(0), with_fresh_seed)

    def compute(position, seed=seed):
        index = start + position * block * tasks + tf.range(block * tasks, dtype=tf.int64)
        element = function(tf.convert_to_tensor(seed, tf.int64), index)
        return element if block == 1 else tf.nest.map_structure(cut, element)

    def cut(leaf):
        return tf.reshape(leaf, (block, tasks, *leaf.shape[1:]))

    dataset = positions.map(compute, num_parallel_calls=tf.data.AUTOTUNE)
    if block > 1:
        dataset = dataset.unbatch().take(-1 if batches is None else batches)
    return dataset.prefetch(tf.data.AUTOTUNE)


def uniform(seed, index, draws, first=0):
    """Random numbers that belong to an episode: a counter-based generator, for all at once.

        draw[n] = mix(mix(mix(seed) + g * index) + g * (n + 1)) / 2**64

    with `mix` the finaliser of SplitMix64 and `g` its increment: an episode reads the stream of
    SplitMix64 that starts at the hash of its seed and index. A draw does not depend on how many
    are asked for. TensorFlow's stateless ops take one seed a call, so a call an episode.

    Args:
        seed: integer scalar, not negative.
        index: `(T,)`, integers, not negative: the episodes.
        draws: how many numbers an episode.
        first: number of the first draw, for draws that are apart from others.

    Returns:
        `(draws, T)`, `float64` in `[0, 1)`, multiples of `2**-53`.

    References:
        - Steele et al. 2014, "Fast splittable pseudorandom number generators", OOPSLA
    """
    increment = tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    number = tf.range(first + 1, first + 1 + draws, dtype=tf.int64)
    state = _mix(tf.cast(seed, tf.uint64))
    state = _mix(state + increment * tf.cast(index, tf.uint64))
    bits = _mix(state + increment * tf.cast(number, tf.uint64)[:, None])
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(11, tf.uint64)), tf.float64) * 2.0**-53


def _mix(bits):
    def fold(bits, shift):
        return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint64(shift)))

    bits = fold(bits, 30) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    bits = fold(bits, 27) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return fold(bits, 31)


def _without_replacement(draws, size):
    """Different numbers out of `0 .. size - 1`, from `(k, ...)` uniform draws and `(...)` sizes.

    Draw `j` picks one of the `size - j` numbers that are left, counted from 0. From the last draw
    back, a number at or above pick `i` becomes one more when `i` is put back. Exact in `k` small
    steps; sorting random keys would need one key for every example of a class.
    """
    k = draws.shape[0]
    taken = np.arange(k, dtype="float64").reshape((k,) + (1,) * (draws.shape.rank - 1))
    codes = tf.cast(draws * (tf.cast(size, tf.float64) - taken), tf.int64)
    picks = codes[-1:]
    for i in reversed(range(k - 1)):
        earlier = codes[i : i + 1]
        picks = tf.concat([earlier, picks + tf.cast(picks >= earlier, tf.int64)], 0)
    return picks


def check_whole(least, **values):
    """Raises `ValueError` unless each of the named values is an integer of at least `least`."""
    for name, value in values.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not least <= value < 2**63:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}."
            )


def _check_counts(tasks, seed, batches, start, ways=2, shots=1, queries=1):
    check_whole(2, ways=ways)
    check_whole(1, shots=shots, queries=queries, tasks=tasks)
    check_whole(1, batches=1 if batches is None else batches)
    check_whole(0, seed=0 if seed is None else seed, start=start)


def _check_labels(labels):
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`labels` must be integers of shape (N,). Received: {labels.dtype} of shape "
            f"{labels.shape}. Pass `labels.argmax(-1)` of one-hot labels, `labels[:, 0]` of a "
            "column, `numpy.unique(labels, return_inverse=True)[1]` of names or floats."
        )


def _check_sizes(classes, counts, ways, shots, queries):
    if len(classes) < ways:
        raise ValueError(
            f"`labels` must hold at least ways={ways} classes. Received: {len(classes)} classes. "
            "Lower `ways`, or add classes."
        )
    few = np.flatnonzero(counts < shots + queries)
    if len(few):
        raise ValueError(
            f"label {classes[few[0]]} has {counts[few[0]]} examples, shots + queries needs "
            f"{shots + queries} ({len(few)} of {len(classes)} labels have too few). Lower `shots` "
            "or `queries`, or leave those labels out."
        )


def _check_images(name, images, examples):
    if images.ndim == 0 or len(images) != examples:
        raise ValueError(
            f"`{name}` must have shape ({examples}, ...), one row a label. Received: shape "
            f"{images.shape}. A list is read as several inputs: join its images by `numpy.stack`."
        )
    # The least and the greatest carry NaN on, without a mask as large as the images.
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite([images.min(), images.max()]).all():
            raise ValueError(
                f"`{name}` holds NaN or infinite values, which would spread to every weight. Leave "
                "those examples out, or replace the values by `numpy.nan_to_num`."
            )
