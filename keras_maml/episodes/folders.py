"""Episodes of image files, one folder a class: decoded and resized once, kept in a file if asked for."""

import hashlib
import json
import os
import pathlib
import warnings

import numpy as np
import tensorflow as tf

from keras_maml.arguments import check_whole
from keras_maml.autotuning import without_autotuning
from keras_maml.episodes.arrays import check_sampling, from_arrays

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
BATCH = 256


def from_folder(directory, image_size, *, channels=3, cache=None, skip_unreadable=False, **sampling):
    """Episodes of the image files in a folder, `directory/class/file`.

        train = keras_maml.episodes.from_folder("birds/train", 84, ways=5, shots=1, queries=15, tasks=4, seed=0)

    Args:
        directory: see `read_folder`, and so `image_size`, `channels`, `cache`, `skip_unreadable`.
        **sampling: the arguments of `keras_maml.episodes.from_arrays` from `ways` on.

    Returns:
        A `tf.data.Dataset`, see `from_arrays`. Raises what `from_arrays` and `read_folder` do.
    """
    check_sampling(**sampling)
    return from_arrays(*read_folder(directory, image_size, channels, cache, skip_unreadable), **sampling)


def read_folder(directory, image_size, channels=3, cache=None, skip_unreadable=False):
    """Reads the image files below a folder; every folder that holds images is a class.

    A class is called by the path of its folder, `"/"` between its parts: of `characters/Greek/alpha/1.png` it is
    `"Greek/alpha"`, and `[label.split("/")[0] for label in labels]` are superclasses for `within`. Files come sorted
    by path. Names that begin with a dot are passed over, as are `Thumbs.db` and `desktop.ini`.

    Args:
        directory: folder with `class/file.png`; also `.jpg`, `.jpeg`, `.gif` (the first frame) and `.bmp`.
        image_size: pixels, `int` or `(height, width)`: images are resized to it, without regard to their proportions,
            with an antialiased Lanczos kernel of radius 3.
        channels: 1 (grey), 3 (colours) or 4 (with opacity).
        cache: path of a `.npy` file. What was read is written there, and mapped from there the next time, in
            milliseconds, as long as names, sizes and times of the files and all settings agree. `None`: in memory.
        skip_unreadable: whether files that are no images are left out, with a warning, rather than refused.

    Returns:
        `(images, labels)`: `uint8` `(N, height, width, channels)`, a `numpy.memmap` where there is a cache, and the
        names of the classes, `(N,)`.

    Raises:
        ValueError: if the folder is missing or holds no images, a folder of a class is empty, a file has another
            suffix or cannot be decoded, or an argument is out of range.
    """
    directory = pathlib.Path(directory).expanduser()
    paths = _image_files(directory, skip_unreadable, cache)
    labels = np.array([path.parent.relative_to(directory).as_posix() for path in paths])
    images, readable = read_images(paths, image_size, channels, cache, skip_unreadable)
    return images, labels[readable]


def read_images(paths, image_size, channels=3, cache=None, skip_unreadable=False):
    """Decodes image files, see `read_folder`.

    Args:
        paths: list of `pathlib.Path`.
        image_size: see `read_folder`, and so the other arguments.

    Returns:
        `(images, readable)`: `uint8` `(N, height, width, channels)`, and for each path whether it was read.
    """
    size = _check_arguments(image_size, channels, cache)
    stamp = None if cache is None else _stamp(paths, size, channels)
    if cache is not None:
        kept = _from_cache(pathlib.Path(cache).expanduser(), stamp)
        if kept is not None:
            _warn_of_skipped(paths, kept[1])
            if skip_unreadable or kept[1].all():
                return kept
    images = np.empty((len(paths), *size, channels), "uint8")
    readable = np.ones(len(paths), bool)
    begin = 0
    for batch, ok in _decoded(paths, size, channels):
        end = begin + len(batch)
        images[begin:end], readable[begin:end] = batch, ok
        begin = end
    if not readable.all():
        bad = np.flatnonzero(~readable)
        if not skip_unreadable or len(bad) == len(paths):
            raise ValueError(
                f"{len(bad)} of {len(paths)} files cannot be decoded as an image, the first is '{paths[bad[0]]}'. "
                "Mend or remove them, or leave them out by `skip_unreadable=True`."
            )
        _warn_of_skipped(paths, readable)
        images = images[readable]
    if cache is not None:
        images = _to_cache(pathlib.Path(cache).expanduser(), stamp, images, readable)
    return images, readable


def _image_files(directory, skip_others, cache=None):
    if not directory.is_dir():
        raise ValueError(f"'{directory}' is no folder. Expected a folder with one folder of image files a class.")
    images, others, empty = [], [], []
    own = () if cache is None else {path.absolute() for path in _files_of(pathlib.Path(cache).expanduser())}
    for folder, folders, files in os.walk(directory, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _leads_up(folder, name))
        shown = sorted(f for f in files if not f.startswith(".") and f not in ("Thumbs.db", "desktop.ini"))
        paths = [path for path in (pathlib.Path(folder) / name for name in shown) if path.absolute() not in own]
        found = [path for path in paths if path.suffix.lower() in SUFFIXES]
        images += found
        others += [path for path in paths if path.suffix.lower() not in SUFFIXES]
        if not found and not folders:
            empty.append(folder)
    if not images:
        raise ValueError(
            f"'{directory}' holds no images ({', '.join(SUFFIXES)}). Expected a folder of image files for each class."
        )
    loose = [path for path in images if path.parent == directory]
    if loose:
        raise ValueError(
            f"{len(loose)} images lie in '{directory}' itself and have no class, such as '{loose[0].name}'. Move them "
            "into a folder for each class."
        )
    if empty:
        raise ValueError(f"{len(empty)} folders hold no image, the first is '{empty[0]}'. Fill or remove them.")
    if others and not skip_others:
        raise ValueError(
            f"{len(others)} files are no images by their names, the first is '{others[0]}'; images end in "
            f"{', '.join(SUFFIXES)}. Remove them, or leave them out by `skip_unreadable=True`."
        )
    if others:
        warnings.warn(f"Left out: {len(others)} files that are no images, such as '{others[0]}'.", stacklevel=4)
    return sorted(images, key=lambda path: path.relative_to(directory).parts)


def _leads_up(folder, name):
    """Whether a folder is a link to one that it lies in: to follow it would never end."""
    here, there = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
    return os.path.commonpath([here, there]) == there


def _check_arguments(image_size, channels, cache):
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2:
        raise ValueError(f"`image_size` must be an integer or (height, width). Received: image_size={image_size!r}.")
    check_whole(1, **{"image_size": size[0]})
    check_whole(1, **{"image_size": size[1]})
    if channels not in (1, 3, 4):
        raise ValueError(f"`channels` must be 1, 3 or 4. Received: channels={channels!r}.")
    if cache is not None and pathlib.Path(cache).suffix != ".npy":
        raise ValueError(f"`cache` must be the path of a .npy file. Received: cache={str(cache)!r}.")
    return size


def _decoded(paths, size, channels):
    """Batches of `(images, whether each was decoded)`, in order."""

    def decode(path):
        # A failing operation would stop the whole pipeline: one element fails alone, and `ignore_errors` drops it.
        image = _decode(tf.io.read_file(path), channels)
        shape = tf.shape(image)[:2]
        return tf.cond(tf.reduce_all(shape == size), lambda: image, lambda: resize(image, size))

    def numbered(position, path):
        return position, decode(path)

    names = tf.constant([str(path) for path in paths])
    dataset = tf.data.Dataset.range(len(paths)).map(lambda i: (i, names[i]))
    dataset = dataset.map(numbered, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    expected = 0
    for positions, images in without_autotuning(dataset.batch(BATCH).prefetch(2)).as_numpy_iterator():
        # What was dropped leaves a gap in the numbers.
        count = int(positions[-1]) + 1 - expected
        batch, ok = np.zeros((count, *size, channels), "uint8"), np.zeros(count, bool)
        batch[positions - expected], ok[positions - expected] = images, True
        expected += count
        yield batch, ok
    if expected < len(paths):
        rest = len(paths) - expected
        yield np.zeros((rest, *size, channels), "uint8"), np.zeros(rest, bool)


def _decode(content, channels):
    """`(height, width, channels)` `uint8`."""
    png, jpeg = b"\x89PNG", b"\xff\xd8\xff"
    converts = tf.strings.substr(content, 0, 4) == png
    if channels != 4:
        converts |= tf.strings.substr(content, 0, 3) == jpeg
    image = tf.cond(
        converts,
        lambda: tf.io.decode_image(content, channels=channels, expand_animations=False),
        # The other decoders know one number of channels, that of the file.
        lambda: _with_channels(tf.io.decode_image(content, channels=0, expand_animations=False), channels),
    )
    image.set_shape((None, None, channels))
    return image


def _with_channels(image, channels):
    """An image of 1 to 4 channels with another number; what was opaque stays so."""
    has = tf.shape(image)[-1]
    opacity = tf.cond(has % 2 == 0, lambda: image[..., -1:], lambda: tf.ones_like(image[..., :1]) * 255)
    colours = tf.cond(has < 3, lambda: tf.tile(image[..., :1], (1, 1, 3)), lambda: image[..., :3])
    colours = tf.ensure_shape(colours, (None, None, 3))
    if channels == 1:
        return tf.cond(has < 3, lambda: image[..., :1], lambda: tf.image.rgb_to_grayscale(colours))
    return colours if channels == 3 else tf.concat([colours, opacity], -1)


def resize(image, size):
    """An image `(height, width, channels)` in another size, in its own dtype: antialiased Lanczos of radius 3."""
    resized = tf.image.resize(image, size, method="lanczos3", antialias=True)
    resized = tf.round(resized) if image.dtype.is_integer else resized
    return tf.saturate_cast(resized, image.dtype)


def _stamp(paths, size, channels):
    digest = hashlib.blake2b(json.dumps([size, channels]).encode(), digest_size=16)
    for path in paths:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sidecar(cache):
    return cache.with_name(cache.name + ".json")


def _files_of(cache):
    return cache, _sidecar(cache)


def _from_cache(cache, stamp):
    if not (cache.is_file() and _sidecar(cache).is_file()):
        return None
    try:
        known = json.loads(_sidecar(cache).read_text())
        if known["stamp"] != stamp:
            return None
        readable = np.ones(known["files"], bool)
        readable[known["unreadable"]] = False
        return np.load(cache, mmap_mode="r"), readable
    except (ValueError, KeyError, EOFError):  # damaged: read anew
        return None


def _to_cache(cache, stamp, images, readable):
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Whoever is killed in between leaves no half a file, and the stamp comes last.
    _sidecar(cache).unlink(missing_ok=True)
    new = cache.with_name(f"{cache.name}.{os.getpid()}.npy")
    np.save(new, images)
    os.replace(new, cache)
    known = {"stamp": stamp, "files": len(readable), "unreadable": np.flatnonzero(~readable).tolist()}
    new = new.with_suffix(".json")
    new.write_text(json.dumps(known))
    os.replace(new, _sidecar(cache))
    return np.load(cache, mmap_mode="r")


def _warn_of_skipped(paths, readable):
    bad = np.flatnonzero(~readable)
    if len(bad):
        warnings.warn(f"Left out: {len(bad)} files that cannot be decoded, such as '{paths[bad[0]]}'.", stacklevel=4)
