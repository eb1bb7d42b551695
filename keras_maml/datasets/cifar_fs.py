"""CIFAR-FS: the 100 classes of CIFAR-100, parted for few-shot learning."""

import pathlib

import numpy as np

from keras_maml.datasets.class_files import check_download, check_files, read_parts

SPLITS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
HOW = (
    "Expected `data/<class>/*.png` and the split of Bertinetto et al. 2019 in `splits/bertinetto/train.txt`, `val.txt` "
    "and `test.txt`, one class a line, as the archive cifar100.zip of https://www.robots.ox.ac.uk/~luca/r2d2.html "
    "holds them."
)


def cifar_fs(directory, image_size=32, cache=None, download=False):
    """CIFAR-FS from a folder of yours, as arrays ready for `keras_maml.episodes.from_arrays`.

        splits = keras_maml.datasets.cifar_fs("cifar100")
        train = keras_maml.episodes.from_arrays(*splits["train"], ways=5, shots=1, queries=15, tasks=4, seed=0)

    The classes of each split are read from the files that come with the set: 64 for training, 16 for validation, 20 for
    the test, 600 pictures of 32 x 32 pixels each.

    Args:
        directory: folder with `data/<class>/*.png` and `splits/bertinetto/{train,val,test}.txt`; its parent will do
            where it is called `cifar100`.
        image_size: pixels, `int` or `(height, width)`, see `keras_maml.episodes.read_folder`.
        cache: folder for one `.npy` file a split, see `keras_maml.episodes.read_folder`; or `None`.
        download: must be `False`: the set is fetched by hand.

    Returns:
        A dict of `(images, labels)` by `"train"`, `"validation"`, `"test"`: `uint8` `(N, height, width, 3)`, and names
        `(N,)`, such as `"maple_tree"`.

    Raises:
        ValueError: if a file is missing, an image cannot be decoded, or splits share a class.

    References:
        - Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers", arXiv:1805.08136 (the split)
        - Krizhevsky 2009, "Learning multiple layers of features from tiny images" (CIFAR-100; published without a
          licence, for research)
    """
    check_download(download, HOW)
    directory = pathlib.Path(directory).expanduser()
    if (directory / "cifar100").is_dir():
        directory /= "cifar100"
    lists = {part: directory / "splits" / "bertinetto" / name for part, name in SPLITS.items()}
    check_files([directory / "data", *lists.values()], HOW)
    parts = {}
    for part, path in lists.items():
        classes = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        check_files([directory / "data" / name for name in classes], HOW)
        files = [sorted((directory / "data" / name).glob("*.png")) for name in classes]
        empty = [name for name, found in zip(classes, files, strict=True) if not found]
        if empty or not classes:
            raise ValueError(f"'{path}': {len(empty)} of {len(classes)} classes without .png files: {empty[:3]}. {HOW}")
        paths = [file for found in files for file in found]
        parts[part] = (paths, np.repeat(classes, [len(found) for found in files]))
    return read_parts(parts, image_size, cache, HOW)
