"""Episodes of `tf.data` and tensorflow-datasets."""

import keras
import numpy as np
import tensorflow as tf

from keras_maml.arguments import check_whole
from keras_maml.autotuning import without_autotuning
from keras_maml.episodes.arrays import check_sampling, from_arrays
from keras_maml.episodes.folders import resize


def from_dataset(dataset, **sampling):
    """Episodes of a `tf.data.Dataset` of `(x, y)` that fits in memory, read once.

        train = keras_maml.episodes.from_dataset(dataset, ways=5, shots=1, queries=15, tasks=32, seed=0)

    Args:
        dataset: see `read_dataset`.
        **sampling: the arguments of `keras_maml.episodes.from_arrays` from `ways` on.

    Returns:
        A `tf.data.Dataset`, see `from_arrays`. Raises what `from_arrays` and `read_dataset` do.
    """
    check_sampling(**sampling)
    return from_arrays(*read_dataset(dataset), **sampling)


def read_dataset(dataset):
    """Reads a `tf.data.Dataset` into memory.

    Args:
        dataset: a finite one of `(x, y)`, x a tensor or a structure of tensors of one shape each, y a label; single
            examples (y a scalar) or batches of them (y of shape `(n,)`).

    Returns:
        `(x, labels)`: numpy arrays `(N, ...)`, or a structure of them, and `(N,)`; strings as `str`.

    Raises:
        ValueError: if it is something else, never ends, is empty, or shapes differ between examples.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(f"Expected a `tf.data.Dataset` of (x, y). Received: a {type(dataset).__name__}.")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not isinstance(spec[1], tf.TensorSpec):
        raise ValueError(f"Expected a dataset of pairs (x, y), y one tensor. Received elements: {spec}.")
    if spec[1].shape.rank not in (0, 1):
        raise ValueError(
            "Expected labels of shape (), of single examples, or (n,), of batches. Received: "
            f"{spec[1].shape}. Map one-hot labels to their `argmax` first."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The dataset never ends. Drop its `repeat()`, or cut it by `take(n)`.")
    batched = spec[1].shape.rank == 1
    for leaf in tf.nest.flatten(spec[0]):
        if not isinstance(leaf, tf.TensorSpec):
            raise ValueError(f"Expected dense tensors. Received: {leaf}. Map them to one shape by `to_tensor`.")
        if leaf.shape.rank is None or not leaf.shape[batched:].is_fully_defined():
            raise ValueError(
                f"All examples must have one shape. Received: shape {leaf.shape}. Resize, pad or `ensure_shape` by a "
                "`map` of the dataset."
            )
    batches = dataset if batched else dataset.batch(1024)
    pairs = list(without_autotuning(batches.prefetch(2)).as_numpy_iterator())
    if not pairs:
        raise ValueError("The dataset holds no example.")
    xs, labels = zip(*pairs, strict=True)
    x = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *xs)
    labels = np.concatenate(labels)
    return x, np.char.decode(labels.astype(bytes), "utf-8") if labels.dtype == object else labels


def from_tfds(name_or_builder, split, *, image_size=None, data_dir=None, download=True, **sampling):
    """Episodes of a supervised tensorflow-datasets problem, read into memory once.

    Most datasets have the same classes in every split. To judge on new classes, read the arrays by `read_tfds`, part
    the classes by `split_classes`, and give them to `from_arrays`.

    Args:
        name_or_builder: see `read_tfds`, and so `split`, `image_size`, `data_dir`, `download`.
        **sampling: the arguments of `keras_maml.episodes.from_arrays` from `ways` on.

    Returns:
        A `tf.data.Dataset`, see `from_arrays`. Raises what `from_arrays` and `read_tfds` do.
    """
    check_sampling(**sampling)
    return from_arrays(*read_tfds(name_or_builder, split, image_size, data_dir, download), **sampling)


def read_tfds(name_or_builder, split, image_size=None, data_dir=None, download=True):
    """Reads one split of a supervised tensorflow-datasets problem into memory.

    Args:
        name_or_builder: a name such as `"omniglot"`, or a builder: any object with `as_dataset(split=,
            as_supervised=True)`.
        split: a split as tensorflow-datasets writes it, such as `"train"` or `"train[:50%]"`.
        image_size: pixels, `int` or `(height, width)`: every image is resized to it once, with an antialiased Lanczos
            kernel of radius 3, in its own dtype. `None`: they have one size.
        data_dir: directory of the prepared dataset; default that of tensorflow-datasets, or of the builder.
        download: whether to fetch and prepare a dataset that is not there.

    Returns:
        `(images, labels)`: numpy arrays `(N, height, width, channels)` and `(N,)`.

    Raises:
        ImportError: if a name is given and tensorflow-datasets is not installed.
        ValueError: if the images differ in size, or the dataset is not there.
    """
    dataset = open_tfds(name_or_builder, split, image_size, data_dir, download, as_supervised=True)
    if image_size is not None:
        size = np.broadcast_to(image_size, 2).tolist()
        dataset = dataset.map(lambda x, y: (resize(x, size), y), num_parallel_calls=tf.data.AUTOTUNE)
    for spec in tf.nest.flatten(dataset.element_spec):
        if not spec.shape.is_fully_defined():
            raise ValueError(
                f"The images of {name_or_builder!r} may differ in size. Received: shape {spec.shape}. Set `image_size`."
            )
    return read_dataset(dataset)


def open_tfds(name_or_builder, split, image_size, data_dir, download, **arguments):
    """A split of a prepared tensorflow-datasets problem as a `tf.data.Dataset`; see `read_tfds`.

    `arguments` are those of `as_dataset`.
    """
    if image_size is not None:
        check_whole(1, image_size=min(np.broadcast_to(image_size, 2).tolist()))
    builder = name_or_builder
    if isinstance(builder, str):
        try:
            import tensorflow_datasets
        except ImportError as error:
            raise ImportError('tensorflow-datasets is not installed: pip install "keras-maml[datasets]"') from error
        builder = tensorflow_datasets.builder(builder, data_dir=data_dir)
    elif data_dir is not None:
        raise ValueError(f"`data_dir` goes with a dataset name, a builder has its own. Received: {data_dir=}.")
    if download and hasattr(builder, "download_and_prepare"):
        builder.download_and_prepare()
    try:
        return without_autotuning(builder.as_dataset(split=split, **arguments))
    except AssertionError as error:  # tensorflow-datasets, of files that are not there
        raise ValueError(
            f"Dataset {name_or_builder!r} is not prepared. Received: {data_dir=}, {download=}. Set `download=True`, or "
            "`data_dir` to the directory that holds it."
        ) from error
