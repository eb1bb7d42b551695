"""Episodes of `tf.data` and tensorflow-datasets."""

import keras
import numpy as np
import tensorflow as tf

from keras_maml.episodes.arrays import check_sampling, from_arrays
from keras_maml.episodes.checks import check_whole


def from_tfds(name_or_builder, split, *, image_size=None, data_dir=None, download=True, **sampling):
    """Episodes of a supervised tensorflow-datasets problem, read into memory once.

    Most datasets have the same classes in every split. To judge on new classes, read the arrays by `read_tfds`, part
    the classes by `split_classes`, and pass each part to `from_arrays`.

    Args:
        name_or_builder: see `read_tfds`, and so `split`, `image_size`, `data_dir`, `download`.
        **sampling: the arguments of `from_arrays` from `ways` on.

    Returns:
        A `tf.data.Dataset`, see `from_arrays`. Raises what `from_arrays` and `read_tfds` do.
    """
    check_sampling(**sampling)  # before the dataset is read
    return from_arrays(*read_tfds(name_or_builder, split, image_size, data_dir, download), **sampling)


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
