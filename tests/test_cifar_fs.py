import numpy as np
import pytest
import tensorflow as tf

from keras_maml.datasets import cifar_fs

CLASSES = {"train": ["apple", "maple_tree"], "val": ["bear"], "test": ["cup", "dolphin"]}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "cifar100"
    (root / "splits" / "bertinetto").mkdir(parents=True)
    for split, classes in CLASSES.items():
        (root / "splits" / "bertinetto" / f"{split}.txt").write_text("\n".join(classes) + "\n")
        for name in classes:
            (root / "data" / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((32, 32, 3), 10 * len(name) + i, "uint8")
                (root / "data" / name / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    (root / "data" / "unused").mkdir()
    return tmp_path


def test_splits_are_those_of_the_files(folder):
    for directory in (folder, folder / "cifar100"):
        splits = cifar_fs(directory)
        assert list(splits) == ["train", "validation", "test"]
        for (images, labels), classes in zip(splits.values(), CLASSES.values(), strict=True):
            assert images.shape == (3 * len(classes), 32, 32, 3)
            assert labels.tolist() == np.repeat(classes, 3).tolist()
            levels = [10 * len(name) + i for name in classes for i in range(3)]
            np.testing.assert_array_equal(images[:, 5, 7, 1], levels)


def test_errors_say_what_to_put_where(folder):
    def check(message, **arguments):
        with pytest.raises(ValueError, match=message):
            cifar_fs(folder, **arguments)

    check("fetched by hand. Received: download=True", download=True)
    lists = folder / "cifar100" / "splits" / "bertinetto"
    (lists / "val.txt").write_text("bear\napple\n")
    check("'train' and 'validation' share 1 classes of 2 and 2, such as 'apple'")
    (lists / "val.txt").write_text("unused\n")
    check("1 of 1 classes without .png files: ..unused")
    (lists / "val.txt").write_text("beaver\n")
    check("1 files or folders are missing, the first is '.*beaver'. Expected `data/<class>")
    (lists / "val.txt").unlink()
    check("the first is '.*val.txt'")
