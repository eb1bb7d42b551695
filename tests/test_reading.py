"""Arrays that stay on disk, and what tells classes apart."""

import gc

import h5py
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import episodes
from keras_maml.episodes import reading

X = np.random.default_rng(0).integers(0, 255, (60, 4, 3)).astype("uint8")
LABELS = np.arange(60) % 6


def first(x, **arguments):
    arguments = {"ways": 3, "shots": 1, "queries": 2, "tasks": 7, "seed": 0} | arguments
    dataset = episodes.from_arrays(x, LABELS, **arguments)
    element = next(iter(dataset))
    for spec, leaf in zip(tf.nest.flatten(dataset.element_spec), tf.nest.flatten(element), strict=True):
        assert spec.shape.is_fully_defined() and spec.shape == leaf.shape
    return element


def check_same(one, other):
    tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def on_disk(tmp_path, x=X):
    array = np.memmap(tmp_path / "x.bin", x.dtype, "w+", shape=x.shape)
    array[:] = x
    return array


def in_hdf5(tmp_path, **arguments):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=X, **arguments)
    return h5py.File(tmp_path / "x.h5")["x"]


@pytest.mark.parametrize("sizes", [{}, {"ways": (2, 4), "shots": (1, 3)}, {"classes": [5, 0, 3]}])
def test_arrays_on_disk_give_the_episodes_of_arrays_in_memory(tmp_path, sizes):
    expected = first(X, **sizes)
    check_same(first(on_disk(tmp_path), **sizes), expected)
    check_same(first(in_hdf5(tmp_path), **sizes), expected)
    check_same(first(in_hdf5(tmp_path, chunks=(7, 4, 3), compression="gzip"), **sizes), expected)


def test_inputs_in_memory_and_on_disk_go_together(tmp_path):
    x, _ = first({"a": X, "b": on_disk(tmp_path)}, classes=[1, 2, 4])
    for part in ("support_x", "query_x"):
        np.testing.assert_array_equal(x[part]["a"], x[part]["b"])


def test_an_array_on_disk_is_not_read_as_a_whole(tmp_path):
    class Counted:
        shape, dtype, rows = X.shape, X.dtype, 0

        def __getitem__(self, rows):
            self.rows += len(rows)
            return X[rows]

    x = Counted()
    element = first(x, tasks=1, batches=1)
    check_same(element, first(X, tasks=1, batches=1))
    assert x.rows <= 6 * reading.FINGERPRINT_ROWS + 9


def test_contiguous_hdf5_is_mapped(tmp_path):
    mapped = reading._mapped(in_hdf5(tmp_path))
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, X)
    chunked = in_hdf5(tmp_path, chunks=(7, 4, 3))
    assert reading._mapped(chunked) is chunked


def test_nan_on_disk_stops_the_step_and_names_the_example(tmp_path):
    x = np.zeros((60, 2), "float32")
    x[31:] = np.nan
    mapped = on_disk(tmp_path, x)
    shifted = np.memmap(tmp_path / "shifted.bin", "float32", "w+", offset=4, shape=x.shape)
    shifted[:] = x
    for source, kind in ((mapped, reading._Mapped), (shifted, reading._Sliced)):
        assert isinstance(reading._on_disk(source, "x"), kind)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"NaN or infinite.*mend the file.*\[(3[1-9]|[45])"):
            first(source)


def test_a_mapped_file_outlives_its_name(tmp_path):
    def make():
        dataset = episodes.from_arrays(on_disk(tmp_path), LABELS, ways=3, shots=1, queries=2, tasks=7, seed=0)
        return iter(dataset)

    iterator = make()
    gc.collect()
    check_same(next(iterator), first(X))


def test_shapes_on_disk_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"`x` must have shape \(60, ...\)"):
        first(on_disk(tmp_path, X[:50]))


def test_a_class_is_known_by_its_examples(tmp_path):
    def classes(x, labels):
        return episodes.from_arrays(x, labels, 2, 1, 1, tasks=1).plan.classes

    whole = classes(X, LABELS)
    assert len(whole) == 6
    assert classes(on_disk(tmp_path), LABELS) == whole
    renamed = classes(X[LABELS >= 4], LABELS[LABELS >= 4] - 4)
    assert {whole[key]: label for key, label in renamed.items()} == {4: 0, 5: 1}
    # Other examples, or more of them, make another class.
    assert not set(classes(255 - X, LABELS)) & set(whole)
    assert not set(classes(np.concatenate([X, X]), np.concatenate([LABELS, LABELS]))) & set(whole)


@pytest.mark.parametrize("kind", ["memmap", "contiguous", "chunked"])
def test_numbers_in_the_other_byte_order_are_read_right(tmp_path, kind):
    x = np.arange(120.0).reshape(60, 2).astype(">f4")
    if kind == "memmap":
        stored = np.memmap(tmp_path / "x.bin", ">f4", "w+", shape=x.shape)
        stored[:] = x
    else:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("x", data=x, chunks=(7, 2) if kind == "chunked" else None)
        stored = h5py.File(tmp_path / "x.h5", "r")["x"]
    check_same(first(stored), first(x.astype("float32")))


def test_ragged_examples_and_no_examples_are_refused():
    ragged = tf.ragged.constant([[1.0], [1.0, 2.0]] * 30)
    with pytest.raises(ValueError, match="dense arrays of one shape. Received: a RaggedTensor"):
        first(ragged)
    with pytest.raises(ValueError, match="must hold an array of examples"):
        first({})
    with pytest.raises(ValueError, match="no real numbers"):
        first(np.ones((60, 2), "complex64"))


def test_strings_of_hdf5_are_labels(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["labels"] = [f"class {label}" for label in LABELS]
    labels = h5py.File(tmp_path / "x.h5", "r")["labels"]
    arguments = {"ways": 3, "shots": 1, "queries": 1, "tasks": 2, "seed": 0}
    named, numbered = (next(iter(episodes.from_arrays(X, k, **arguments)))[0] for k in (labels, LABELS))
    np.testing.assert_array_equal(named["support_x"], numbered["support_x"])
