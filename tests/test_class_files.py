import numpy as np
import pytest
import tensorflow as tf

from keras_maml.datasets import class_files


@pytest.fixture
def parts(tmp_path):
    result = {}
    for level, (part, name) in enumerate({"train": "a", "test": "b"}.items()):
        paths = [tmp_path / f"{name}{i}.png" for i in range(2)]
        for path in paths:
            path.write_bytes(tf.io.encode_png(np.full((4, 4, 3), 50 * level, "uint8")).numpy())
        result[part] = paths, np.array([name] * 2)
    return result


def test_parts_are_read_apart_and_cached_apart(parts, tmp_path):
    for _ in range(2):
        read = class_files.read_parts(parts, 2, tmp_path / "cache", "")
        assert [images.max() for images, _ in read.values()] == [0, 50]
        assert [labels.tolist() for _, labels in read.values()] == [["a", "a"], ["b", "b"]]
    assert (tmp_path / "cache" / "train.npy").exists() and (tmp_path / "cache" / "test.npy").exists()


def test_errors(parts, tmp_path):
    with pytest.raises(ValueError, match="fetched by hand. Received: download=True. Put it there."):
        class_files.check_download(True, "Put it there.")
    with pytest.raises(ValueError, match="1 files or folders are missing, the first is '.*none'. Put it there."):
        class_files.check_files([tmp_path, tmp_path / "none"], "Put it there.")
    parts["train"][1][:] = "b"
    with pytest.raises(ValueError, match="'train' and 'test' share 1 classes"):
        class_files.read_parts(parts, 2, None, "")
