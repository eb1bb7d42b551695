"""Episode batches as arrays, whoever made them: what `describe` and `plot` look at."""

import dataclasses
import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

EXPECTED = (
    'An episode batch is ({"support_x": (T, S, ...), "support_y": (T, S, ...), "query_x": (T, Q, ...)}, query_y: '
    '(T, Q, ...)), of T tasks, S supports and Q queries; behind it may stand a sample_weight (T, Q), and in the dict '
    '"support_weight": (T, S), "query_weight": (T, Q) and "domain": (T,). '
)


@dataclasses.dataclass
class Part:
    """The supports or the queries of a batch.

    Args:
        x: structure of arrays `(T, n, ...)`.
        y: structure of arrays `(T, n, ...)`.
        real: `(T, n)`, `False` for padding.
    """

    x: Any
    y: Any
    real: np.ndarray

    @property
    def targets(self):
        """The labels of the first output, `(T, n, ...)`."""
        return keras.tree.flatten(self.y)[0]


@dataclasses.dataclass
class Batch:
    """One batch of episodes, as arrays.

    Args:
        support, query: `Part`s.
        weights: `{name: (T, n)}`, what weights there are.
        domain: `(T,)` or `None`.
    """

    support: Part
    query: Part
    weights: dict
    domain: np.ndarray | None

    @property
    def tasks(self):
        """How many tasks."""
        return len(self.support.real)

    def arrays(self):
        """Every array of examples by its name: `{name: (array, real)}`."""
        return {
            name + "".join(f"[{key!r}]" for key in path): (leaf, part.real)
            for part, names in ((self.support, ("support_x", "support_y")), (self.query, ("query_x", "query_y")))
            for name, structure in zip(names, (part.x, part.y), strict=True)
            for path, leaf in keras.tree.flatten_with_path(structure)
        }


def read_batches(dataset, count):
    """At most `count` batches of a dataset, of an iterable of batches, or of one batch: a list of `Batch`.

    Raises:
        ValueError: if there is none, or one that is no episode batch.
    """
    if is_batch(dataset):
        dataset = [dataset]
    if isinstance(dataset, dict | str) or not (hasattr(dataset, "__iter__") or hasattr(dataset, "__getitem__")):
        raise ValueError(f"{EXPECTED}Received: {type(dataset).__name__}, neither such a batch nor a dataset of them.")
    elements = dataset.take(count) if isinstance(dataset, tf.data.Dataset) else itertools.islice(iter(dataset), count)
    found = [read_batch(element) for element in elements]
    if not found:
        raise ValueError("The dataset holds no batch, so there is nothing to look at.")
    return found


def is_batch(dataset):
    """Whether this is one batch, and no dataset of them."""
    return isinstance(dataset, tuple | list) and len(dataset) > 0 and isinstance(dataset[0], dict)


def read_batch(element):
    """One episode batch as a `Batch`.

    Raises:
        ValueError: saying what an episode batch is.
    """
    parts = element if isinstance(element, tuple | list) else (element,)
    x = parts[0] if len(parts) else None
    needed = ("support_x", "support_y", "query_x")
    if not isinstance(x, dict) or not set(needed) <= set(x) or not 2 <= len(parts) <= 3:
        first = f"a dict of {sorted(map(str, x))}" if isinstance(x, dict) else type(x).__name__
        raise ValueError(f"{EXPECTED}Received: {len(parts)} part{'s' * (len(parts) != 1)}, the first {first}.")
    arrays = {name: keras.tree.map_structure(_array, x[name]) for name in needed}
    arrays["query_y"] = keras.tree.map_structure(_array, parts[1])
    rows = _rows(arrays)
    weights = {"support_weight": x.get("support_weight"), "sample_weight": parts[2] if len(parts) == 3 else None}
    if weights["sample_weight"] is None:
        weights["query_weight"] = x.get("query_weight")
    weights = {name: _array(keras.tree.flatten(w)[0]) for name, w in weights.items() if w is not None}
    for name, weight in weights.items():
        expected = rows["support" if name == "support_weight" else "query"]
        if weight.shape[:2] != expected or weight.size != np.prod(expected):
            raise ValueError(f"{EXPECTED}Received: {name} of shape {weight.shape}, where {expected} was expected.")
        weights[name] = weight.reshape(expected)
    query_weight = weights.get("sample_weight", weights.get("query_weight"))
    return Batch(
        Part(arrays["support_x"], arrays["support_y"], _real(weights.get("support_weight"), rows["support"])),
        Part(arrays["query_x"], arrays["query_y"], _real(query_weight, rows["query"])),
        weights,
        _array(x["domain"]).reshape(-1) if "domain" in x else None,
    )


def _real(weight, rows):
    return np.ones(rows, bool) if weight is None else weight != 0


def _array(leaf):
    array = leaf.numpy() if tf.is_tensor(leaf) else np.asarray(leaf)
    # bfloat16 and its like are no floats to numpy.
    return array.astype("float32") if array.dtype.kind == "V" else array


def _rows(arrays):
    """`{"support": (T, S), "query": (T, Q)}`, after a check that all arrays agree in it."""
    rows = {}
    for name, structure in arrays.items():
        part = name.split("_")[0]
        for leaf in keras.tree.flatten(structure):
            expected = rows.setdefault(part, leaf.shape[:2])
            tasks = rows["support"][0] if rows["support"] else None
            if leaf.ndim < 2 or leaf.shape[:2] != expected or leaf.shape[0] != tasks or not leaf.size:
                shapes = {n: [a.shape for a in keras.tree.flatten(s)] for n, s in arrays.items()}
                shapes = ", ".join(f"{n} {' and '.join(map(str, s))}" for n, s in shapes.items())
                raise ValueError(f"{EXPECTED}Received the shapes {shapes}.")
    return rows


def class_labels(ys):
    """Arrays of labels `(T, n, ...)` as integers `(T, n)` each, or `None` if they are no classes but targets.

    Classes are integers, one a row, or one-hot rows.
    """
    if all(y.dtype.kind in "iub" and y.size == y.shape[0] * y.shape[1] for y in ys):
        return [y.reshape(y.shape[:2]).astype("int64") for y in ys]
    if all(y.ndim == 3 and y.shape[2] > 1 and y.dtype.kind in "iubf" and _is_one_hot(y) for y in ys):
        return [y.argmax(-1) for y in ys]
    return None


def _is_one_hot(y):
    # Rows of zeros are padding.
    return bool(((y == 0) | (y == 1)).all() and (y.sum(-1) <= 1).all() and (y == 1).any())


def domain_names(dataset):
    """Names of the domains of a mixture, as far as a dataset knows them."""
    return tuple(getattr(getattr(dataset, "plan", None), "domains", ()))
