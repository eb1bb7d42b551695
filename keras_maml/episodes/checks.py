"""What builders of episodes refuse, each with what came, what was expected and how to fix it."""

import numbers

import keras
import numpy as np


def check_whole(least, **values):
    """Raises `ValueError` unless each of the named values is an integer of at least `least`."""
    for name, value in values.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not least <= value < 2**63:
            raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}.")


def names_of(labels):
    """Labels `(N,)` as a numpy array of integers or strings.

    Raises:
        ValueError: if they are anything else.
    """
    labels = np.asarray(labels)
    if labels.dtype == object and labels.ndim == 1:
        wrong = next((i for i, label in enumerate(labels) if not isinstance(label, str)), None)
        if wrong is None:
            labels = labels.astype(str)
        else:
            raise ValueError(
                f"`labels` must be all integers or all strings. Received: an object array in which label {wrong} is "
                f"{labels[wrong]!r}, a {type(labels[wrong]).__name__}. Convert it, or leave that example out."
            )
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype.kind in "US"):
        raise ValueError(
            f"`labels` must be integers or strings of shape (N,). Received: {labels.dtype} of shape {labels.shape}. "
            "Pass `labels.argmax(-1)` of one-hot labels, `labels[:, 0]` of a column, `labels.astype(int)` of whole "
            "numbers stored as floats."
        )
    return labels


def check_examples(name, structure, examples):
    """Refuses arrays that are no examples: not one row a label, of objects or strings, with NaN where they are read.

    Args:
        name: of the argument.
        structure: arrays, nested in tuples and dicts.
        examples: expected length, N.

    Raises:
        ValueError: naming the array by its path in the structure.
    """
    for path, leaf in keras.tree.flatten_with_path(structure):
        _check_leaf(name + "".join(f"[{key!r}]" for key in path), leaf, examples)


def _check_leaf(name, array, examples):
    if len(array.shape) == 0 or array.shape[0] != examples:
        raise ValueError(
            f"`{name}` must have shape ({examples}, ...), one row a label. Received: shape {tuple(array.shape)}. A "
            "list is read as several inputs: join its arrays by `numpy.stack`."
        )
    kind = np.dtype(array.dtype).kind
    if kind in "OUSV":
        what = "objects, often arrays of unequal shapes" if kind == "O" else "no numbers"
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
