"""Episodes of arrays: classification by label (`from_arrays`), and one task a group (`from_groups`)."""

import keras
import numpy as np
import tensorflow as tf

from keras_maml.episodes.checks import names_of
from keras_maml.episodes.counts import Count, Shots
from keras_maml.episodes.pipeline import Plan, check_counts
from keras_maml.episodes.reading import Examples
from keras_maml.episodes.sampling import Classes, check_numbers, sampler

# Drawing rows is many tiny operations, reading them a few large ones: so 8 batches are drawn at once.
BLOCK = 8


def from_arrays(
    x,
    labels,
    ways,
    shots,
    queries,
    tasks,
    seed=None,
    batches=None,
    start=0,
    shard=None,
    classes=None,
    within=None,
):
    """Episodes of a classification problem.

    An episode draws `ways` classes without replacement, and `shots + queries` examples of each without replacement, of
    which the first `shots` are support. Every ordered draw is as likely, so the label that a class gets inside an
    episode is random, and so is the order of its examples. Rows are sorted by label: `support_y = [0] * shots + [1] *
    shots + ...`. The support of an episode does not depend on `queries`, unless shots are what a class has left
    (`AtMost`) or a `Shots`.

    Where `ways`, `shots` or `queries` vary (see `keras_maml.episodes.counts`), episodes have the static size of the
    greatest, S = ways * shots and Q = ways * queries. What an episode has stands first, sorted by label; behind it
    stands padding: zeros of label 0 and weight 0, which reach no loss, no metric and no moment.

    Images keep their dtype and are cast by the model: leave them in `uint8`, a quarter of the size of `float32`, and
    begin the model with `keras.layers.Rescaling(1 / 255)`.

    Args:
        x: `(N, ...)`, or a structure (dict, tuple) of such arrays for several inputs. Held in memory, but for
            `numpy.memmap` and `h5py.Dataset`, of which only the examples of an episode are read.
        labels: `(N,)`, integers of any value, or strings. Classes may differ in their number of examples.
        ways: classes of an episode, at least 2: an integer, `(least, greatest)` or `{ways: weight}`.
        shots: support examples a class, at least 1: an integer, `(least, greatest)`, `{shots: weight}`, `AtMost`,
            `PerClass`, or a `Shots` such as `ImbalancedShots()`.
        queries: query examples a class, at least 1: as `shots`, but no `Shots`.
        tasks: episodes a batch, `T`, at least 1.
        seed: 0 or more: every iterator yields the same episodes. `None`: every iterator, so every pass over the
            dataset, yields fresh ones. `keras_maml.episodes.fixed(n)`: a fixed set of `n` episodes.
        batches: length, at least 1. `None`: infinite; `fit` then needs `steps_per_epoch`.
        start: index of the first episode, 0 or more. To resume a run: `batches_done * tasks`, times `count` of a shard.
        shard: `(worker, count)`, to share batches out; see `keras_maml.episodes.from_function`.
        classes: labels to draw from, as `keras_maml.episodes.split_classes` gives them; `None`: all.
        within: `(N,)`, superclass of every example (alphabet of a character, domain of an intent). The classes of an
            episode are then of one superclass, all superclasses as likely; a range of `ways` ends at the number of
            classes that the superclass has.

    Returns:
        A `tf.data.Dataset` of `(x, y)`: `{"support_x": (T, S, ...), "support_y": (T, S), "query_x": (T, Q, ...)}` and
        `query_y: (T, Q)`, the labels `int32` in `0 .. ways - 1`. Where sizes vary, of `(x, y, sample_weight)`, with
        `x["support_weight"]: (T, S)`, and `sample_weight: (T, Q)`, which is also `x["query_weight"]`, `float32`.

    Raises:
        ValueError: if an argument is out of range, the arrays do not fit each other, a value is not finite, or classes,
            or examples of a class, are too few.

    References:
        - Vinyals et al. 2016, "Matching networks for one shot learning", arXiv:1606.04080
    """
    numbers = check_sampling(ways, shots, queries, tasks, seed, batches, start, shard)
    labels = names_of(labels)
    within = None if within is None else names_of(within, "within")
    if within is not None and np.shape(within) != labels.shape:
        raise ValueError(
            f"`within` must give every example its superclass, shape {labels.shape}. Received: {np.shape(within)}."
        )
    chosen = Classes(labels, within, classes)
    draw = sampler(chosen, *numbers)
    examples = Examples("x", x, len(labels))
    rows = None if classes is None else np.sort(chosen.rows)
    read = _reader(draw, examples.reader(rows))
    fingerprints = examples.fingerprints(chosen)
    return Plan(draw.draw, tasks, seed, batches, start, shard, read, BLOCK, fingerprints).dataset()


def from_groups(
    x,
    y,
    groups,
    shots,
    queries,
    tasks,
    seed=None,
    batches=None,
    start=0,
    shard=None,
    ordered=False,
):
    """Episodes in which every group is a task: a user, a device, a store; regression or classification.

    An episode draws one group, and `shots + queries` of its examples without replacement, of which the first `shots`
    are support. So a `MetaModel` learns to adapt to a new group from a few of its examples: the cold start.

        train = keras_maml.episodes.from_groups(x, y, user_ids, shots=5, queries=AtMost(20), tasks=32, seed=0)

    Groups with fewer examples than asked for are refused; `AtMost` takes what there is, and pads.

    Args:
        x: see `from_arrays`.
        y: `(N, ...)`, numbers: targets, or classes that all groups share, counted from 0.
        groups: `(N,)`, integers or strings: the group of every example.
        shots: support examples of a group, `S`: see `from_arrays`.
        queries: query examples of a group, `Q`: see `from_arrays`.
        tasks: see `from_arrays`, and so `seed`, `batches`, `start`, `shard`.
        ordered: whether the examples of an episode stay in the order of the arrays, so that, if that is time, every
            support comes before every query. The support then depends on `queries`.

    Returns:
        A `tf.data.Dataset` of `({"support_x": (T, S, ...), "support_y": (T, S, ...), "query_x": (T, Q, ...)}, query_y:
        (T, Q, ...))`, with weights where sizes vary; see `from_arrays`.

    Raises:
        ValueError: see `from_arrays`.
    """
    check_counts(tasks, seed, batches, start, shard)
    numbers = check_group_sampling(shots, queries, tasks, seed, batches, start, shard)
    groups = names_of(groups, "groups")
    targets, examples = Examples("y", y, len(groups)), Examples("x", x, len(groups))
    chosen = Classes(groups, what="group")
    draw = sampler(chosen, *numbers, ordered)
    read = _reader(draw, examples.reader(), targets.reader())
    fingerprints = examples.fingerprints(chosen, targets)
    return Plan(draw.draw, tasks, seed, batches, start, shard, read, BLOCK, fingerprints).dataset()


def check_sampling(
    ways, shots, queries, tasks, seed=None, batches=None, start=0, shard=None, classes=None, within=None
):
    """Refuses what is out of range before a source is read; takes the arguments of `from_arrays` from `ways` on.

    Returns:
        `(ways, shots, queries)` as `Count`s.

    Raises:
        ValueError: saying which argument.
    """
    check_counts(tasks, seed, batches, start, shard)
    return check_numbers(ways, shots, queries)


def check_group_sampling(shots, queries, tasks, seed=None, batches=None, start=0, shard=None, ordered=False):
    """`check_sampling` for the arguments of `from_groups` from `shots` on."""
    check_counts(tasks, seed, batches, start, shard)
    shots, queries = (
        shots if isinstance(shots, Shots) else Count("shots", shots, 1),
        Count("queries", queries, 1),
    )
    return Count("ways", 1, 1, per_class=False), shots, queries


def _reader(draw, read_x, read_y=None):
    """`drawn -> (x, y[, sample_weight])`."""

    def read(drawn):
        parts = drawn["support"], drawn["query"]
        weights = [draw.weights(drawn, part) for part in ("support", "query")]
        xs = [blank(x, weight) for x, weight in zip(read_x(parts), weights, strict=True)]
        if read_y is None:
            ys = [draw.labels(drawn, part) for part in ("support", "query")]
        else:
            ys = [blank(y, weight) for y, weight in zip(read_y(parts), weights, strict=True)]
        x = {"support_x": xs[0], "support_y": ys[0], "query_x": xs[1]}
        if weights[0] is None:
            return x, ys[1]
        # Keras gives `predict` no sample weights, so x carries them too.
        return x | {"support_weight": weights[0], "query_weight": weights[1]}, ys[1], weights[1]

    return read


def blank(structure, weight):
    """Zeros where the weight `(T, n)` is 0: padding shows no example of another task."""
    if weight is None:
        return structure

    def zeros(leaf):
        shape = tf.concat([tf.shape(weight), tf.ones(leaf.shape.rank - 2, tf.int32)], 0)
        return tf.where(tf.reshape(weight, shape) > 0, leaf, tf.zeros((), leaf.dtype))

    return keras.tree.map_structure(zeros, structure)
