"""Omniglot: handwritten characters of 50 alphabets, 20 drawings of each."""

import numpy as np

from keras_maml import episodes
from keras_maml.arguments import check_whole
from keras_maml.episodes.tf_datasets import open_tfds

CHARACTERS = 1623
ALPHABETS = 50
# What `split` names: tensorflow-datasets' splits for training and for the test.
NAMED = {"original": ("train", "test"), "small1": ("small1", "test"), "small2": ("small2", "test")}


def omniglot(
    data_dir=None,
    split=(1100, 100, 423),
    rotated=("train",),
    image_size=28,
    seed=0,
    download=True,
    alphabets=False,
):
    """Splits of Omniglot by character, as arrays ready for `keras_maml.episodes.from_arrays`.

        label = character + 1623 * turns

    where `turns` counts quarter turns against the clock. In the splits named by `rotated` every
    character appears in all four orientations, each of them a class of its own with 20 drawings;
    elsewhere `turns` is 0. No character is in two splits, in any orientation.

        splits = keras_maml.datasets.omniglot()
        images, labels = splits["train"]
        train = keras_maml.episodes.from_arrays(images, labels, 5, shots=1, queries=15, tasks=32)

    Drawings of 105 x 105 pixels are resized with an antialiased Lanczos kernel of radius 3, and
    inverted: ink is 255 on a ground of 0, so that padding by zeros is ground. Finn et al. ask PIL
    for that kernel too, but of black and white images PIL takes the nearest pixel all the same.

    Args:
        data_dir: directory of tensorflow-datasets that holds, or will hold, `omniglot`.
        split: `(train, validation, test)`, how many of the 1,623 characters go to each, after a
            shuffle by `seed`; a count of 0 leaves the split out. Or `"original"`: the 964
            background characters for `"train"`, the 659 of the evaluation set, of other alphabets,
            for `"test"`. Or `"small1"`, `"small2"`: the same test, and for `"train"` one of the two
            sets of five background alphabets by which Lake et al. make the task harder.
        rotated: names of the splits whose characters appear in all four orientations. Finn et al.
            rotate in every split: `("train", "validation", "test")`.
        image_size: pixels of a side, at least 1.
        seed: 0 or more: which characters go to which split; unused by named splits.
        download: whether to fetch and prepare the dataset if it is not there.
        alphabets: whether the alphabet of every drawing comes too, for episodes of characters of
            one alphabet: `from_arrays(images, labels, ..., within=alphabets)`.

    Returns:
        A dict of `(images, labels)` by `"train"`, `"validation"` and `"test"`, for named splits by
        `"train"` and `"test"`: `uint8` `(N, image_size, image_size, 1)`, `int64` `(N,)`. With
        `alphabets`, of `(images, labels, alphabets)`, the latter `int64` `alphabet + 50 * turns`: a
        turned alphabet is an alphabet of its own.

    Raises:
        ImportError: if tensorflow-datasets is not installed.
        ValueError: if an argument is out of range, or the dataset is not there.

    References:
        - Lake et al. 2015, "Human-level concept learning through probabilistic program induction",
          doi:10.1126/science.aab3050 (the data, under the MIT licence)
        - Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks",
          section 5.2, arXiv:1703.03400 (the counts of the split)
        - Santoro et al. 2016, "One-shot learning with memory-augmented neural networks",
          arXiv:1605.06065 (rotations as new classes)
    """
    check_whole(1, image_size=image_size)
    check_whole(0, seed=seed)
    _check_split(split)
    named = isinstance(split, str)
    names = ("train", "test") if named else ("train", "validation", "test")
    _check_rotated(rotated, names)
    parts = {
        name: _read(source, image_size, data_dir, download, alphabets)
        for name, source in zip(("train", "test"), NAMED[split if named else "original"], strict=True)
    }
    if not named:
        parts = _part(*map(np.concatenate, zip(*parts.values(), strict=True)), split=split, seed=seed)
    return {name: _turned(*columns, turns=4 if name in rotated else 1) for name, columns in parts.items()}


def _read(source, image_size, data_dir, download, alphabets):
    images, labels = episodes.read_tfds("omniglot", source, image_size, data_dir, download)
    columns = 255 - images[..., :1], labels
    if not alphabets:
        return columns
    # Files are read in one order, so that the rows are the same; pictures are not decoded for it.
    from tensorflow_datasets import decode

    skipped = {"image": decode.SkipDecoding()}
    rows = open_tfds("omniglot", source, None, data_dir, download, decoders=skipped).as_numpy_iterator()
    found = np.array([(row["label"], row["alphabet"]) for row in rows], "int64")
    if (found[:, 0] != labels).any():
        raise ValueError(f"Split '{source}' of omniglot came in another order than before. Prepare the dataset anew.")
    return (*columns, found[:, 1])


def _part(images, labels, *more, split, seed):
    # By the generator of the episodes: streams of numpy's may change from version to version.
    characters = np.unique(labels)
    shuffled = characters[np.argsort(episodes.uniform(seed, characters, 1)[0])]
    parts = {}
    for name, count in zip(("train", "validation", "test"), split, strict=True):
        rows = np.isin(labels, shuffled[:count])
        shuffled = shuffled[count:]
        if count:
            parts[name] = tuple(column[rows] for column in (images, labels, *more))
    return parts


def _turned(images, labels, alphabets=None, *, turns):
    turned = (
        np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in range(turns)]),
        np.concatenate([labels + CHARACTERS * turn for turn in range(turns)]),
    )
    if alphabets is None:
        return turned
    return (*turned, np.concatenate([alphabets + ALPHABETS * turn for turn in range(turns)]))


def _check_split(split):
    if isinstance(split, str) and split in NAMED:
        return
    if isinstance(split, str) or len(split) != 3 or sum(split) > CHARACTERS:
        raise ValueError(
            "`split` must be 'original', 'small1', 'small2' or (train, validation, test), of at most "
            f"{CHARACTERS} characters together. Received: split={split!r}."
        )
    check_whole(0, **dict(zip(("split[0]", "split[1]", "split[2]"), split, strict=True)))


def _check_rotated(rotated, names):
    if isinstance(rotated, str) or not set(rotated) <= set(names):
        raise ValueError(
            f"`rotated` must be a sequence of names out of {names}. Received: rotated={rotated!r}."
        )
