"""What data sets of image files have in common: lists of files and classes by split, in a folder of the user's."""

import pathlib

from keras_maml.episodes.folders import read_images
from keras_maml.episodes.splits import check_disjoint


def check_download(download, how):
    """Refuses `download=True` where nothing can be fetched; `how` says what to put where."""
    if download:
        raise ValueError(f"This set has to be fetched by hand. Received: {download=}. {how}")


def check_files(paths, how):
    """Refuses files or folders that are not there."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{len(missing)} files or folders are missing, the first is '{missing[0]}'. {how}")


def read_parts(parts, image_size, cache, how):
    """Decodes the images of each part.

    Args:
        parts: `{name: (paths, labels)}`.
        image_size: see `keras_maml.episodes.read_folder`.
        cache: folder of the caches, or `None`.
        how: what to put where, for errors.

    Returns:
        `{name: (images, labels)}`.
    """
    check_disjoint(**{name: labels for name, (_, labels) in parts.items()})
    check_files([path for paths, _ in parts.values() for path in paths], how)
    result = {}
    for name, (paths, labels) in parts.items():
        kept = None if cache is None else pathlib.Path(cache).expanduser() / f"{name}.npy"
        result[name] = read_images(paths, image_size, cache=kept)[0], labels
    return result
