"""What may be wrong with episodes: numbers, labels, queries that are supports too."""

import keras
import numpy as np

from keras_maml.checking.findings import Finding
from keras_maml.episodes.inspecting import class_labels, read_batch

LEAK = 0.05  # share of queries; some data hold the same example twice


def arrays_of(batch):
    """A batch `(x, y, sample_weight)` as one of `episodes.inspecting.Batch`."""
    return read_batch([part for part in batch if part is not None])


def check_data(batch, outputs, pure):
    """Findings of a batch of episodes.

    Args:
        batch: a `Batch`.
        outputs: what class labels must be below, or `None`.
        pure: whether the whole batch normalises by its own moments.
    """
    yield from _finite(batch)
    wrong = [name for name, weight in batch.weights.items() if (weight < 0).any() or not (weight > 0).any(1).all()]
    if wrong:
        yield Finding(
            "bad-weights",
            "error",
            f"`{wrong[0]}` has a negative weight, or a task in which all weights are 0, so that its loss has no value.",
            "Give every task at least one example with a positive weight.",
        )
        return
    yield from _leak(batch)
    labels = class_labels([batch.support.targets, batch.query.targets]) if outputs is not None else None
    if labels is not None:
        yield from _labels(batch, *labels, outputs)
    if pure and batch.support.real.sum(1).min() == 1:
        yield Finding(
            "moments-of-one-example",
            "warning",
            "A task has one support, and batch normalisation takes its moments over the supports of a task: of a dense "
            "layer's output they leave nothing but the offset.",
            "Use more shots, LayerNormalization, or `keras_maml.layers.BatchNormalization('moving')`.",
        )


def _finite(batch):
    arrays = {name: array for name, (array, _) in batch.arrays().items()} | batch.weights
    for name, array in arrays.items():
        # Padding counts too: in a backward pass 0 * NaN is NaN.
        if array.dtype.kind == "f":
            bad = ~np.isfinite(array.reshape(array.shape[0] * array.shape[1], -1)).all(1)
            if bad.any():
                yield Finding(
                    "not-finite-data",
                    "error",
                    f"`{name}` has NaN or infinite values in {int(bad.sum())} of {len(bad)} examples.",
                    "Leave these examples out, or replace the values: one of them makes the loss of its task NaN.",
                )


def _leak(batch):
    shared = queries = 0
    for task in range(batch.tasks):
        supports, asked = (_rows(part, task) for part in (batch.support, batch.query))
        shared += sum(row in set(supports) for row in asked)
        queries += len(asked)
    if shared > LEAK * queries:
        yield Finding(
            "leaked-queries",
            "error",
            f"{shared} of {queries} queries are supports of the same task too, with the same labels: the learner is "
            "judged on what it adapted to.",
            "Draw supports and queries of a task without replacement, as the builders of `keras_maml.episodes` do.",
        )


def _rows(part, task):
    """The examples of a task, each with its target, as bytes."""
    leaves = [_alike(leaf[task][part.real[task]]) for leaf in keras.tree.flatten((part.x, part.y))]
    return [b"|".join(np.ascontiguousarray(leaf[i]).tobytes() for leaf in leaves) for i in range(len(leaves[0]))]


def _alike(array):
    kind = array.dtype.kind
    return array.astype("float32") if kind == "f" else array.astype("int64") if kind in "iub" else array


def _labels(batch, support, query, outputs):
    supports = [np.unique(labels[real]) for labels, real in zip(support, batch.support.real, strict=True)]
    queries = [np.unique(labels[real]) for labels, real in zip(query, batch.query.real, strict=True)]
    low = min(labels.min() for labels in supports + queries)
    high = max(labels.max() for labels in supports + queries)
    if low < 0 or high >= outputs:
        yield Finding(
            "labels-out-of-range",
            "error",
            f"Labels go from {low} to {high}, and the model has {outputs} outputs, for labels from 0 to {outputs - 1}.",
            "Number the classes of every episode from 0, or give the output layer as many units as there are ways.",
        )
        return
    ways = max(len(labels) for labels in supports)
    # Where ways vary, the tasks of one batch may happen to be small.
    if ways < outputs and not batch.weights:
        yield Finding(
            "mismatched-ways",
            "warning",
            f"No task has more than {ways} ways, and the model has {outputs} outputs: {outputs - ways} of them never "
            "are the right answer.",
            f"Give the output layer {ways} units, or make episodes with `ways={outputs}`.",
        )
    unknown = sum(bool(set(q.tolist()) - set(s.tolist())) for s, q in zip(supports, queries, strict=True))
    if unknown:
        yield Finding(
            "classes-without-support",
            "warning",
            f"In {unknown} of {batch.tasks} tasks queries are of a class that has no support.",
            "Draw the classes of an episode first, then supports and queries of each.",
        )
