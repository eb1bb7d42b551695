"""What builders of episodes refuse, each with what came, what was expected and how to fix it."""

import keras
import numpy as np


def names_of(labels, name="labels"):
    """Labels `(N,)`, in order or a set, as a numpy array of integers or strings.

    Args:
        labels: what was given.
        name: of the argument.

    Raises:
        ValueError: if they are anything else.
    """
    if isinstance(labels, (set, frozenset)):
        labels = list(labels)
        labels = np.sort(names_of(labels, name)) if labels else np.array(labels, int)
    labels = np.asarray(labels)
    if labels.dtype == object and labels.ndim == 1 and all(isinstance(label, bytes) for label in labels):
        labels = np.array([label.decode("utf-8") for label in labels], object)  # strings of HDF5
    if labels.dtype == object and labels.ndim == 1:
        wrong = next((i for i, label in enumerate(labels) if not isinstance(label, str)), None)
        if wrong is None:
            labels = labels.astype(str)
        else:
            raise ValueError(
                f"`{name}` must be all integers or all strings. Received: an object array in which label {wrong} is "
                f"{labels[wrong]!r}, a {type(labels[wrong]).__name__}. Convert it, or leave that example out."
            )
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype.kind in "US"):
        raise ValueError(
            f"`{name}` must be integers or strings of shape (N,). Received: {labels.dtype} of shape {labels.shape}. "
            f"Pass `{name}.argmax(-1)` of one-hot rows, `{name}[:, 0]` of a column, `{name}.astype(int)` of whole "
            f"numbers stored as floats, a list of one for a single value."
        )
    return labels


def check_alike(name, asked, names):
    """Refuses strings that are looked for among integers, or the reverse: NumPy would compare `"3"` and `3` as text."""
    if len(asked) and len(names) and (asked.dtype.kind in "US") != (names.dtype.kind in "US"):
        kinds = ["strings" if array.dtype.kind in "US" else "integers" for array in (names, asked)]
        raise ValueError(f"The labels are {kinds[0]}, and `{name}` has {kinds[1]}. Received: {asked[0].item()!r}.")


def check_examples(name, structure, examples):
    """Refuses arrays that are no examples: not one row a label, of objects or strings, with NaN where they are read.

    Args:
        name: of the argument.
        structure: arrays, nested in tuples and dicts.
        examples: expected length, N.

    Raises:
        ValueError: naming the array by its path in the structure.
    """
    flat = keras.tree.flatten_with_path(structure)
    if not flat:
        raise ValueError(f"`{name}` must hold an array of examples. Received: {structure!r}.")
    for path, leaf in flat:
        _check_leaf(name + "".join(f"[{key!r}]" for key in path), leaf, examples)


def _check_leaf(name, array, examples):
    if len(array.shape) == 0 or array.shape[0] != examples:
        raise ValueError(
            f"`{name}` must have shape ({examples}, ...), one row a label. Received: shape {tuple(array.shape)}. A "
            "list is read as several inputs: join its arrays by `numpy.stack`."
        )
    kind = np.dtype(array.dtype).kind
    if kind in "OUSVc":
        what = "objects, often arrays of unequal shapes" if kind == "O" else "no real numbers"
        raise ValueError(
            f"`{name}` must hold numbers of one shape. Received: dtype {array.dtype}, which is {what}. Resize or pad "
            "the examples to one shape; texts go through `keras_maml.episodes.from_text`."
        )
    if kind == "f" and isinstance(array, np.ndarray) and not isinstance(array, np.memmap) and array.size:
        # The least and the greatest carry NaN on, without a mask as large as the array.
        if not np.isfinite([array.min(), array.max()]).all():
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
            raise ValueError(
                f"`{name}` holds NaN or infinite values, which would spread to every weight: {len(bad)} of "
                f"{len(array)} examples, the first is {bad[0]}. Leave them out, or replace the values by "
                "`numpy.nan_to_num`."
            )


def check_enough(names, counts, needed, what="label", least="shots + queries"):
    """Raises `ValueError` if a class or group has fewer than `needed` examples, naming the first."""
    few = np.flatnonzero(np.asarray(counts) < needed)
    if len(few):
        name, count = names[few[0]], counts[few[0]]
        raise ValueError(
            f"{what} {name} has {count} example{'s' if count != 1 else ''}, {least} needs {needed} ({len(few)} of "
            f"{len(names)} {what}s have too few). Lower `shots` or `queries`, let them follow what there is "
            f"(`episodes.AtMost`), or leave those {what}s out."
        )
