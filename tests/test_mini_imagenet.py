import numpy as np
import pytest
import tensorflow as tf

from keras_maml.datasets import mini_imagenet

CLASSES = {"train": ["n01", "n02"], "val": ["n03"], "test": ["n04"]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for split, classes in CLASSES.items():
        lines = ["filename,label"]
        for name in classes:
            for i in range(3):
                file = f"{name}{i:08d}.jpg"
                lines.append(f"{file},{name}")
                pixels = np.full((20, 30, 3), 40 * int(name[1:]) + i, "uint8")
                (tmp_path / "images" / file).write_bytes(tf.io.encode_jpeg(pixels, quality=100).numpy())
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("cached", [False, True])
def test_splits_are_those_of_the_files(folder, cached):
    for _ in range(2):
        splits = mini_imagenet(folder, image_size=8, cache=folder / "kept" if cached else None)
        assert list(splits) == ["train", "validation", "test"]
        for (images, labels), classes in zip(splits.values(), CLASSES.values(), strict=True):
            assert images.shape == (3 * len(classes), 8, 8, 3) and images.dtype == np.uint8
            assert labels.tolist() == np.repeat(classes, 3).tolist()
            levels = [40 * int(name[1:]) + i for name in classes for i in range(3)]
            np.testing.assert_allclose(images[:, 4, 4, 0].astype(int), levels, atol=1)  # of JPEG
    assert (folder / "kept" / "test.npy").exists() == cached


def test_errors_say_what_to_put_where(folder):
    def check(message, **arguments):
        with pytest.raises(ValueError, match=message):
            mini_imagenet(folder, **arguments)

    check("fetched by hand. Received: download=True.*image-net.org", download=True)
    first = folder / "images" / "n0200000001.jpg"
    content = first.read_bytes()
    first.write_bytes(b"broken")
    check("1 of 6 files cannot be decoded as an image, the first is '.*n0200000001.jpg'")
    first.unlink()
    check("1 files or folders are missing, the first is '.*n0200000001.jpg'")
    first.write_bytes(content)
    train = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(train + "n0400000001.jpg,n04\n")
    check("'train' and 'test' share 1 classes of 3 and 1, such as 'n04'")
    (folder / "train.csv").write_text(train.replace("filename,label", "file,class"))
    check("must begin with filename,label")
    (folder / "train.csv").unlink()
    check("the first is '.*train.csv'. Expected `images/`.*Ravi and Larochelle")


def test_blank_lines_and_marks_are_passed_over_and_short_lines_refused(folder):
    expected = mini_imagenet(folder, image_size=8)["train"][1]
    path = folder / "train.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    np.testing.assert_array_equal(mini_imagenet(folder, image_size=8)["train"][1], expected)
    path.write_text(text + "alone\n", encoding="utf-8")
    with pytest.raises(ValueError, match="Every line .* Received: \\['alone'\\]"):
        mini_imagenet(folder, image_size=8)
