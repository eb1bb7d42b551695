"""mini-ImageNet: 100 classes of ImageNet, 600 photographs of each."""

import csv
import pathlib

import numpy as np

from keras_maml.datasets.class_files import check_download, check_files, read_parts

SPLITS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
HOW = (
    "Expected `images/` with the photographs, and the split of Ravi and Larochelle 2017 in `train.csv`, `val.csv` and "
    "`test.csv` (columns filename, label; from https://github.com/twitter-research/meta-learning-lstm, folder "
    "data/miniImagenet). The photographs are those of ILSVRC-2012, from https://image-net.org."
)


def mini_imagenet(directory, image_size=84, cache=None, download=False):
    """mini-ImageNet from a folder of yours, as arrays ready for `keras_maml.episodes.from_arrays`.

        splits = keras_maml.datasets.mini_imagenet("mini_imagenet", cache="mini_imagenet/cache")
        train = keras_maml.episodes.from_arrays(*splits["train"], ways=5, shots=1, queries=15, tasks=4, seed=0)

    The classes of each split are read from the files that come with the set: 64 for training, 16 for validation, 20 for
    the test.

    Args:
        directory: folder with `images/<filename>` and `train.csv`, `val.csv`, `test.csv`.
        image_size: pixels, `int` or `(height, width)`, see `keras_maml.episodes.read_folder`.
        cache: folder for one `.npy` file a split, see `keras_maml.episodes.read_folder`; or `None`.
        download: must be `False`: the photographs are given to registered researchers only.

    Returns:
        A dict of `(images, labels)` by `"train"`, `"validation"`, `"test"`: `uint8` `(N, height, width, 3)`, and names
        of WordNet `(N,)`, such as `"n01532829"`.

    Raises:
        ValueError: if a file is missing, an image cannot be decoded, or splits share a class.

    References:
        - Vinyals et al. 2016, "Matching networks for one shot learning", arXiv:1606.04080 (the set)
        - Ravi and Larochelle 2017, "Optimization as a model for few-shot learning", ICLR (the split)
        - Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge", arXiv:1409.0575 (photographs;
          for non-commercial research and education only, by the terms of access of ImageNet)
    """
    check_download(download, HOW)
    directory = pathlib.Path(directory).expanduser()
    check_files([directory / "images", *(directory / name for name in SPLITS.values())], HOW)
    parts = {}
    for part, name in SPLITS.items():
        with open(directory / name, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
        if len(rows) < 2 or rows[0] != ["filename", "label"]:
            raise ValueError(f"'{directory / name}' must begin with filename,label. Received: {rows[:1]}. {HOW}")
        short = next((row for row in rows if len(row) != 2), None)
        if short is not None:
            raise ValueError(f"Every line of '{directory / name}' must be filename,label. Received: {short}. {HOW}")
        parts[part] = ([directory / "images" / row[0] for row in rows[1:]], np.array([row[1] for row in rows[1:]]))
    return read_parts(parts, image_size, cache, HOW)
