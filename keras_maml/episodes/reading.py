"""Reading examples by row: from tensors, over mapped files too, and through NumPy where an array is something else."""

import ctypes
import hashlib

import keras
import numpy as np
import tensorflow as tf

from keras_maml.episodes.checks import check_examples

FINGERPRINT_ROWS = 4  # one row is not enough: two intents may begin with a "yes"
CLASSES_AT_ONCE = 1000  # in memory, of arrays that may be on disk


class Examples:
    """The examples of a source, nested as the model takes them.

    Args:
        name: of the argument, for errors.
        x: `(N, ...)` or a structure of such: arrays, tensors, lists of numbers are held in memory; `numpy.memmap`,
            `h5py.Dataset` and whatever else has `shape`, `dtype` and `[]` but is no array stays where it is.
        examples: N.
    """

    def __init__(self, name, x, examples):
        self.structure = _as_arrays(x)
        check_examples(name, self.structure, examples)
        self.name = name

    def reader(self, rows=None):
        """A function from row numbers to examples.

        Args:
            rows: sorted row numbers that will be asked for, `None` for all: only these are held in memory.

        Returns:
            `[(...), ...] -> [structure of (..., ...), ...]`: for each tensor of rows the examples.
        """
        leaves = [_on_disk(leaf, self.name) if _stays(leaf) else _held(leaf, rows) for leaf in self._leaves()]

        def read(parts):
            held = parts
            if rows is not None:
                position = tf.searchsorted(tf.constant(rows, tf.int64), tf.reshape(tf.concat(parts, -1), (-1,)))
                position = tf.reshape(tf.cast(position, tf.int64), tf.shape(tf.concat(parts, -1)))
                held = tf.split(position, [part.shape[-1] for part in parts], -1)
            read_leaves = [
                [tf.gather(leaf, part) for part in held] if tf.is_tensor(leaf) else leaf(parts) for leaf in leaves
            ]
            return [
                keras.tree.pack_sequence_as(self.structure, [leaf[i] for leaf in read_leaves])
                for i in range(len(parts))
            ]

        return read

    def fingerprints(self, classes, targets=None):
        """`{hash: label}` of classes: what a class consists of, whatever it is called.

        Two sources share a class if they share its number of examples and the first few of them.

        Args:
            classes: the `Classes`.
            targets: `Examples` that belong to these, or `None`: groups may share their inputs and differ in targets.
        """
        leaves = self._leaves() + ([] if targets is None else targets._leaves())
        found = {}
        for begin in range(0, len(classes.names), CLASSES_AT_ONCE):
            some = slice(begin, begin + CLASSES_AT_ONCE)
            # A smaller class repeats its last row.
            position = np.minimum(np.arange(FINGERPRINT_ROWS), classes.sizes[some, None] - 1)
            rows = classes.rows[classes.first[some, None] + position]
            taken = [_rows_of(leaf, rows).reshape(len(rows), -1) for leaf in leaves]
            for i, (name, size) in enumerate(zip(classes.names[some], classes.sizes[some], strict=True)):
                digest = hashlib.blake2b(str(size).encode(), digest_size=16)
                for leaf in taken:
                    digest.update(np.ascontiguousarray(leaf[i]))
                found[digest.digest()] = name.item()
        return found

    def _leaves(self):
        return keras.tree.flatten(self.structure)


def _on_disk(array, name):
    """A function from tensors of rows to examples of an array that stays on disk."""
    array = _mapped(array)
    # TensorFlow wants numbers in the machine's order at addresses that its vector instructions can load.
    plain = array.dtype.isnative and array.dtype.kind in "iuf" if isinstance(array, np.memmap) else False
    aligned = plain and array.flags.c_contiguous and array.size and array.ctypes.data % 64 == 0
    return _Mapped(array, name) if aligned else _Sliced(array, name)


class _Mapped:
    """Reads rows of a mapped file as those of a tensor in memory; the system loads the pages that are touched."""

    def __init__(self, array, name):
        self.array, self.name = array, name  # holds the mapping
        # NumPy exports no read-only memory, and TensorFlow only reads: so the same bytes once more, as if writable.
        memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
        view = np.frombuffer(memory, array.dtype).reshape(array.shape)
        self.tensor = tf.experimental.dlpack.from_dlpack(view.__dlpack__())

    def __call__(self, parts):
        return [self._finite(tf.gather(self.tensor, part), part) for part in parts]

    def _finite(self, taken, rows):
        if not taken.dtype.is_floating:
            return taken
        axes = list(range(rows.shape.rank, taken.shape.rank))
        bad = tf.boolean_mask(rows, tf.reduce_any(~tf.math.is_finite(taken), axes))
        message = f"`{self.name}` holds NaN or infinite values; leave these examples out, or mend the file:"
        with tf.control_dependencies([tf.debugging.Assert(tf.equal(tf.size(bad), 0), [message, bad])]):
            return tf.identity(taken)


class _Sliced:
    """Reads rows of an array by its own `[]`."""

    def __init__(self, array, name):
        self.array, self.name = array, name

    def __call__(self, parts):
        dtype = tf.as_dtype(self.array.dtype)
        taken = tf.numpy_function(self._take, list(parts), [dtype] * len(parts), stateful=False)
        taken = taken if isinstance(taken, list) else [taken]
        for tensor, part in zip(taken, parts, strict=True):
            tensor.set_shape([*part.shape, *self.array.shape[1:]])
        return taken

    def _take(self, *parts):
        # TensorFlow takes bytes as they are, so they must stand in the machine's order.
        taken = [_rows_of(self.array, part) for part in parts]
        taken = [block.astype(block.dtype.newbyteorder("="), copy=False) for block in taken]
        for part, block in zip(parts, taken, strict=True):
            if block.dtype.kind == "f" and not np.isfinite(block).all():
                bad = part[~np.isfinite(block.reshape(*part.shape, -1)).all(-1)]
                raise ValueError(
                    f"`{self.name}` holds NaN or infinite values; leave these examples out, or mend the file: "
                    f"[{bad.flat[0]} ...]"
                )
        return taken



def _mapped(array):
    """An HDF5 dataset as a `numpy.memmap`, much faster to read, where it lies in its file as it would in memory."""
    layout = getattr(array, "id", None)
    if not hasattr(layout, "get_offset") or array.chunks is not None or array.file.mode != "r":
        return array
    offset = layout.get_offset()
    if offset is None or array.external or array.is_virtual:
        return array
    return np.memmap(array.file.filename, array.dtype, "r", offset, array.shape)


def _rows_of(array, rows):
    """Examples `(..., ...)` of rows `(...)`, by NumPy."""
    if isinstance(array, np.ndarray):
        return np.take(array, rows, axis=0)
    # HDF5 reads rows in rising order only, each once.
    different, position = np.unique(rows, return_inverse=True)
    return np.asarray(array[different])[position.reshape(rows.shape)]


def _as_arrays(x):
    """The structure with its leaves as arrays; a list of numbers is an array, a list of arrays several inputs."""
    if isinstance(x, dict):
        return {key: _as_arrays(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
        return tuple(_as_arrays(value) for value in x)  # tf.data would stack a list
    if isinstance(x, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            f"Examples must be dense arrays of one shape. Received: a {type(x).__name__}. Pad them to one length, by "
            "`x.to_tensor()` or `tf.sparse.to_dense(x)`."
        )
    if _stays(x):
        return x
    try:
        return np.asarray(x)
    except ValueError:  # lists of unequal lengths: refused with all other objects
        return np.asarray(x, object)


def _stays(leaf):
    if isinstance(leaf, (np.ndarray, np.generic, tf.Tensor)):
        return isinstance(leaf, np.memmap)
    return all(hasattr(leaf, name) for name in ("shape", "dtype", "__getitem__")) and not hasattr(leaf, "to_numpy")


def _held(leaf, rows):
    with tf.init_scope(), tf.device("CPU:0"):
        # The map captures eager tensors as inputs; a constant of its graph is limited to 2 GB.
        return tf.constant(leaf if rows is None else leaf[rows])
