"""How many classes, supports and queries an episode has: one number, or a distribution over numbers.

What `ways=`, `shots=` and `queries=` of the builders take:

| written | means |
|---|---|
| `5` | always 5 |
| `(1, 10)` | uniform between 1 and 10, both included |
| `{1: 0.5, 5: 0.5}` | any distribution: numbers with their weights |
| `AtMost(15)` | 15, or as many as a class has (`shots`, `queries`) |
| `PerClass((1, 10))` | every class of an episode draws its own number (`shots`, `queries`) |
| `ImbalancedShots()` | supports as Meta-Dataset draws them (`shots`), or a `Shots` of your own |
"""

import math
import numbers

import numpy as np
import tensorflow as tf

from keras_maml.arguments import check_whole


class AtMost:
    """A number, or as many as there are: supports leave one query at least, queries take what supports leave.

    For classes of which some have few examples, as the users of a cold-start problem.

    Args:
        count: 1 or more.
    """

    def __init__(self, count):
        check_whole(1, count=count)
        self.count = count


class PerClass:
    """A distribution from which every class of an episode draws a number of its own.

    Args:
        count: what `shots` takes: an integer, `(least, greatest)` or `{value: weight}`.
    """

    def __init__(self, count):
        self.count = count


class Shots:
    """Supports drawn for all classes of an episode together. Subclass it for a distribution of your own.

    Args:
        total: greatest number of supports of an episode, S; the rows that an episode has are padded up to it.
        each: greatest number of supports of a class.
        draws: uniform numbers that `__call__` gets for every class.
    """

    def __init__(self, total, each, draws):
        check_whole(1, total=total, each=each)
        check_whole(0, draws=draws)
        self.total, self.each, self.draws = total, each, draws

    def __call__(self, draws, sizes, queries):
        """Numbers of supports and queries.

        Args:
            draws: `(T, ways, self.draws)`, uniform in `[0, 1)`.
            sizes: `(T, ways)` `int64`: examples of every class, 0 for a class that the episode leaves out.
            queries: `(T, ways)` `int64`: queries asked for, 0 for a class that is left out.

        Returns:
            `(shots, queries)`, each `(T, ways)` `int64`: at least 1 and together no more than its size for each class
            that takes part, 0 for the others; the shots of an episode `total` together at most, each at most `each`.
        """
        raise NotImplementedError


class ImbalancedShots(Shots):
    """Supports as Meta-Dataset draws them: large classes have more, and every episode another total.

        queries = min(queries asked for, floor(least size / 2))             the same for every class
        total   = min(total, sum over classes of ceil(beta min(cap, size - queries)))      beta in (0, 1]
        share   = exp(alpha) size / sum over classes of exp(alpha) size      alpha in [log 1/2, log 2)
        shots   = min(floor(share (total - ways)) + 1, size - queries)

    With `ways=(5, 50)` and `queries=10` the episodes are those of Meta-Dataset for a set without a hierarchy.
    Classes need 2 examples at least.

    Args:
        total: greatest number of supports of an episode, no less than its ways.
        cap: number of supports of a class beyond which it adds nothing to the total.

    References:
        - Triantafillou et al. 2020, "Meta-Dataset: A dataset of datasets for learning to learn from few examples",
          section 3, arXiv:1903.03096
    """

    def __init__(self, total=500, cap=100):
        super().__init__(total, each=total, draws=2)
        check_whole(1, cap=cap)
        self.cap = cap

    def __call__(self, draws, sizes, queries):
        present = sizes > 0
        ways = tf.reduce_sum(tf.cast(present, tf.int64), 1, keepdims=True)
        least = tf.reduce_min(tf.where(present, sizes, tf.int64.max), 1, keepdims=True)
        queries = tf.minimum(queries, least // 2)
        left = sizes - queries
        beta = 1 - draws[:, :1, 0]  # (0, 1]
        asked = tf.math.ceil(beta * tf.cast(tf.minimum(left, self.cap), tf.float64))
        total = tf.minimum(tf.reduce_sum(tf.cast(asked, tf.int64), 1, keepdims=True), self.total)
        weight = tf.exp((2 * draws[:, :, 1] - 1) * math.log(2)) * tf.cast(sizes, tf.float64)
        share = weight / tf.reduce_sum(weight, 1, keepdims=True)
        more = tf.cast(tf.floor(share * tf.cast(total - ways, tf.float64)), tf.int64)
        return tf.where(present, tf.minimum(more + 1, left), 0), queries


class Count:
    """One number of an episode, read from what `ways=`, `shots=` or `queries=` was given.

    Args:
        name: of the argument.
        value: an integer, `(least, greatest)`, `{value: weight}`, or one of these in `PerClass`, or `AtMost`.
        lowest: least number that makes sense.
        per_class: whether `PerClass`, `AtMost` are possible.

    Attributes:
        least, greatest: range of the number.
        fixed: the number, if it is always the same, else `None`.
        per_class: whether each class draws its own.
        at_most: whether less is taken where there is less.
    """

    def __init__(self, name, value, lowest, per_class=True):
        self.per_class = per_class and isinstance(value, PerClass)
        self.at_most = per_class and isinstance(value, AtMost)
        inner = value.count if self.per_class or self.at_most else value
        self._values, self._cumulative = _read(name, inner, lowest, per_class)
        self.least, self.greatest = int(self._values[0]), int(self._values[-1])
        self.fixed = self.least if self.least == self.greatest and not self.at_most else None
        self.is_range = isinstance(inner, (tuple, list))

    def __call__(self, draws):
        """Numbers `int64` for uniform draws in `[0, 1)` of any shape."""
        flat = tf.reshape(draws, (-1,))
        # `right`: a number whose weight is 0 has no draw.
        position = tf.searchsorted(tf.constant(self._cumulative[:-1], tf.float64), flat, side="right")
        return tf.reshape(tf.gather(tf.constant(self._values, tf.int64), position), tf.shape(draws))


def _read(name, value, lowest, per_class):
    if isinstance(value, numbers.Integral):
        check_whole(lowest, **{name: value})
        return np.array([value]), np.array([1.0])
    if isinstance(value, (tuple, list)) and len(value) == 2:
        check_whole(lowest, **{f"{name}[0]": value[0]})
        check_whole(value[0], **{f"{name}[1]": value[1]})
        values = np.arange(value[0], value[1] + 1)
        return values, np.arange(1, len(values) + 1) / len(values)
    if isinstance(value, dict) and value:
        for number in value:
            check_whole(lowest, **{f"a number in {name}": number})
        weights = np.array([value[number] for number in sorted(value)], float)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError(f"Weights in `{name}` must be finite, 0 or more, not all 0. Received: {name}={value!r}.")
        kept = weights > 0
        cumulative = np.cumsum(weights[kept]) / weights.sum()
        return np.array(sorted(value))[kept], cumulative
    more = ", `AtMost`, `PerClass`" if per_class else ""
    raise ValueError(
        f"`{name}` must be an integer of at least {lowest}, (least, greatest), or a dict of weights by number{more}. "
        f"Received: {name}={value!r}."
    )
