"""Omniglot: handwritten characters of 50 alphabets, 20 drawings of each."""

import numpy as np

from keras_maml import episodes

CHARACTERS = 1623


def omniglot(
    data_dir=None,
    split=(1100, 100, 423),
    rotated=("train",),
    image_size=28,
    seed=0,
    download=True,
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
            for `"test"`.
        rotated: names of the splits whose characters appear in all four orientations. Finn et al.
            rotate in every split: `("train", "validation", "test")`.
        image_size: pixels of a side, at least 1.
        seed: 0 or more: which characters go to which split; unused by `"original"`.
        download: whether to fetch and prepare the dataset if it is not there.

    Returns:
        A dict of `(images, labels)` by `"train"`, `"validation"` and `"test"`, for `"original"` by
        `"train"` and `"test"`: `uint8` `(N, image_size, image_size, 1)`, `int64` `(N,)`.

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
    episodes.check_whole(1, image_size=image_size)
    episodes.check_whole(0, seed=seed)
    names = ("train", "test") if split == "original" else ("train", "validation", "test")
    _check_split(split)
    _check_rotated(rotated, names)
    parts = {
        name: episodes.read_tfds("omniglot", name, image_size, data_dir, download)
        for name in ("train", "test")
    }
    if split != "original":
        parts = _part(*map(np.concatenate, zip(*parts.values(), strict=True)), split, seed)
    return {
        name: _turned(255 - images[..., :1], labels, turns=4 if name in rotated else 1)
        for name, (images, labels) in parts.items()
    }


def _part(images, labels, split, seed):
    # By the generator of the episodes: streams of numpy's may change from version to version.
    characters = np.unique(labels)
    shuffled = characters[np.argsort(episodes.uniform(seed, characters, 1)[0])]
    parts = {}
    for name, count in zip(("train", "validation", "test"), split, strict=True):
        rows = np.isin(labels, shuffled[:count])
        shuffled = shuffled[count:]
        if count:
            parts[name] = images[rows], labels[rows]
    return parts


def _turned(images, labels, turns):
    return (
        np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in range(turns)]),
        np.concatenate([labels + CHARACTERS * turn for turn in range(turns)]),
    )


def _check_split(split):
    if split == "original":
        return
    if isinstance(split, str) or len(split) != 3 or sum(split) > CHARACTERS:
        raise ValueError(
            "`split` must be 'original' or (train, validation, test), of at most "
            f"{CHARACTERS} characters together. Received: split={split!r}."
        )
    episodes.check_whole(0, **dict(zip(("split[0]", "split[1]", "split[2]"), split, strict=True)))


def _check_rotated(rotated, names):
    if isinstance(rotated, str) or not set(rotated) <= set(names):
        raise ValueError(
            f"`rotated` must be a sequence of names out of {names}. Received: rotated={rotated!r}."
        )
