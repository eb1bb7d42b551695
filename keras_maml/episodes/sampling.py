"""Which examples make an episode: classes, then rows of their examples, drawn without replacement.

    index -> superclass -> classes -> how many of each -> examples of each -> rows of the arrays

`Classes` holds who belongs where; `Balanced` and `Variable` turn `(seed, index)` into rows.
"""

import numpy as np
import tensorflow as tf

from keras_maml.episodes import draws as random
from keras_maml.episodes.checks import check_alike, check_enough, names_of
from keras_maml.episodes.counts import Count, Shots


class Classes:
    """The examples of every class, and the classes of every superclass.

    Args:
        labels: `(N,)` integers or strings.
        within: `(N,)` superclass of every example, or `None`.
        classes: labels to draw from, or `None` for all.
        what: what a class is called in errors.

    Attributes:
        names: `(C,)`, sorted: the labels that are drawn from.
        rows: rows of the examples of all these classes, one class after another.
        first, sizes: `(C,)`: where a class begins in `rows`, and how many it has.
        order: classes, one superclass after another; `class_first`, `class_sizes`: where each superclass begins in
            it, and how many classes it has; `superclasses`: their names (one without a name if there are none).
    """

    def __init__(self, labels, within=None, classes=None, what="label"):
        self.what = what
        self.names, class_of, self.sizes = np.unique(labels, return_inverse=True, return_counts=True)
        self.rows = np.argsort(class_of, kind="stable")
        self.first = np.cumsum(self.sizes) - self.sizes
        if classes is not None:
            chosen = self._positions(classes)
            self.rows = np.concatenate([self.rows[self.first[c] : self.first[c] + self.sizes[c]] for c in chosen])
            self.names, self.sizes = self.names[chosen], self.sizes[chosen]
            self.first = np.cumsum(self.sizes) - self.sizes
        self.superclasses = np.array([""])
        superclass_of = np.zeros(len(self.names), int)
        if within is not None:
            self.superclasses, superclass_of = self._superclasses(np.asarray(within))
        self.order = np.argsort(superclass_of, kind="stable")
        self.class_sizes = np.bincount(superclass_of, minlength=len(self.superclasses))
        self.class_first = np.cumsum(self.class_sizes) - self.class_sizes

    def _positions(self, classes):
        asked = np.unique(names_of(classes, "classes")) if np.size(classes) else self.names[:0]
        check_alike("classes", asked, self.names)
        unknown = ~np.isin(asked, self.names)
        if unknown.any() or not len(asked):
            raise ValueError(
                f"`classes` must be labels that occur. Received: {len(asked)} classes, of which {unknown.sum()} do not "
                f"occur{', such as ' + repr(asked[unknown][0].item()) if unknown.any() else ''}."
            )
        return np.searchsorted(self.names, asked)

    def _superclasses(self, within):
        names, superclass_of_row = np.unique(within[self.rows], return_inverse=True)
        of_first = superclass_of_row[self.first]
        expected = np.repeat(of_first, self.sizes)
        if (superclass_of_row != expected).any():
            row = np.flatnonzero(superclass_of_row != expected)[0]
            label = self.names[np.searchsorted(self.first, row, side="right") - 1]
            raise ValueError(
                f"`within` must give one superclass to all examples of a label. Received: label {label} within "
                f"'{names[expected[row]]}' and within '{names[superclass_of_row[row]]}'. If two superclasses use one "
                "label for different classes, join the names: numpy.char.add(within, labels)."
            )
        return names, of_first

    def choose(self, seed, index, ways, greatest):
        """Classes `(greatest, T)` of every episode, different ones, all of one superclass.

        The first `ways` of an episode are uniform; where a superclass has fewer than `greatest`, the rest is void.
        """
        picks = random.uniform(seed, index, greatest)
        superclass = tf.zeros_like(index)
        if len(self.superclasses) > 1:
            draw = random.uniform(seed, index, 1, first=random.SUPERCLASS)[0]
            superclass = tf.cast(draw * len(self.superclasses), tf.int64)
        size = tf.gather(tf.constant(self.class_sizes, tf.int64), superclass)
        position = random.without_replacement(picks, size)
        if len(self.superclasses) == 1:
            return position
        position = tf.minimum(position, size - 1) + tf.gather(tf.constant(self.class_first, tf.int64), superclass)
        return tf.gather(tf.constant(self.order, tf.int64), position)

    def ways_within(self, seed, index, count):
        """Ways `(T,)` of every episode; a range ends at the number of classes of the superclass."""
        draw = random.uniform(seed, index, 1, first=random.COUNTS)[0]
        if not count.is_range or len(self.superclasses) == 1:
            return count(draw)
        again = random.uniform(seed, index, 1, first=random.SUPERCLASS)[0]
        size = tf.gather(
            tf.constant(self.class_sizes, tf.int64), tf.cast(again * len(self.superclasses), tf.int64)
        )
        greatest = tf.minimum(size, count.greatest)
        return count.least + tf.cast(draw * tf.cast(greatest - count.least + 1, tf.float64), tf.int64)

    def check_ways(self, ways):
        """Refuses more ways than there are classes."""
        total = len(self.names)
        if self.class_sizes.max(initial=0) < ways.greatest:
            within = "" if len(self.superclasses) == 1 else f", at most {self.class_sizes.max()} within a superclass"
            raise ValueError(
                f"`labels` must hold at least ways={ways.greatest} classes. Received: {total} classes{within}. Lower "
                "`ways`, or add classes."
            )
        needed = ways.least if ways.is_range else ways.greatest
        few = np.flatnonzero(self.class_sizes < needed)
        if len(few):
            raise ValueError(
                f"Superclass '{self.superclasses[few[0]]}' of `within` has {self.class_sizes[few[0]]} classes, "
                f"ways={needed} are needed ({len(few)} of {len(self.superclasses)} superclasses have too few). Lower "
                "`ways`, give a range such as `ways=(2, 5)`, or leave those superclasses out by `classes`."
            )


class Balanced:
    """Episodes of fixed size: rows `(T, ways, shots + queries)`, of which the first `shots` are support."""

    def __init__(self, classes, ways, shots, queries, ordered=False):
        self.classes, self.ordered = classes, ordered
        self.ways, self.shots, self.queries = ways, shots, queries
        check_enough(classes.names, classes.sizes, shots + queries, classes.what)

    def draw(self, seed, index):
        """`{"support": (T, S), "query": (T, Q)}`, rows."""
        ways, shots, each = self.ways, self.shots, self.shots + self.queries
        chosen = self.classes.choose(seed, index, ways, ways)  # (ways, T)
        draws = random.uniform(seed, index, each * ways, first=ways)
        sizes = tf.gather(tf.constant(self.classes.sizes, tf.int64), chosen)
        picks = random.without_replacement(tf.reshape(draws, (each, ways, -1)), sizes)
        if self.ordered:
            picks = tf.sort(picks, axis=0)
        picks += tf.gather(tf.constant(self.classes.first, tf.int64), chosen)
        rows = tf.transpose(tf.gather(tf.constant(self.classes.rows, tf.int64), picks), (2, 1, 0))
        return {
            "support": tf.reshape(rows[:, :, :shots], (-1, ways * shots)),
            "query": tf.reshape(rows[:, :, shots:], (-1, ways * self.queries)),
        }

    def labels(self, drawn, part):
        """Labels inside the episodes, `(T, S)` or `(T, Q)`: the same for all."""
        each = self.shots if part == "support" else self.queries
        label = tf.constant(np.repeat(np.arange(self.ways), each), tf.int32)
        tasks = drawn[part].shape[0] or tf.shape(drawn[part])[0]
        return tf.tile(label[None], (tasks, 1))

    def weights(self, drawn, part):
        """`None`: there is no padding."""
        return None


class Variable:
    """Episodes whose numbers vary: rows packed one class after another, then padding up to a static size.

        S = greatest ways * greatest shots, or what the `Shots` says        Q = greatest ways * greatest queries
    """

    def __init__(self, classes, ways, shots, queries, ordered=False):
        self.classes, self.ordered = classes, ordered
        self.ways, self.shots, self.queries = ways, shots, queries
        self.joint = isinstance(shots, Shots)
        if self.joint and shots.total < ways.greatest:
            raise ValueError(
                f"`shots` has {shots.total} supports in all, fewer than the {ways.greatest} ways. Raise `total`."
            )
        each = shots.each if self.joint else shots.greatest
        self.each = min(each + queries.greatest, int(classes.sizes.max()))  # greatest number of picks of a class
        self.sizes = {
            "support": min(shots.total, ways.greatest * each) if self.joint else ways.greatest * each,
            "query": ways.greatest * queries.greatest,
        }
        if self.joint:
            check_enough(classes.names, classes.sizes, 2, classes.what, "one support and one query")
        else:
            needed = sum(1 if count.at_most else count.greatest for count in (shots, queries))
            check_enough(classes.names, classes.sizes, needed, classes.what, "the greatest shots + queries")

    def draw(self, seed, index):
        """Rows, labels and weights of both parts, `{"support": (T, S), "support_y": (T, S), ...}`."""
        greatest = self.ways.greatest
        chosen = tf.transpose(self.classes.choose(seed, index, self.ways.greatest, greatest))  # (T, ways)
        ways = self.classes.ways_within(seed, index, self.ways)
        present = tf.range(greatest, dtype=tf.int64) < ways[:, None]
        chosen = tf.where(present, chosen, 0)
        sizes = tf.where(present, tf.gather(tf.constant(self.classes.sizes, tf.int64), chosen), 0)
        shots, queries = self._numbers(seed, index, sizes)
        draws = random.uniform(seed, index, self.each * greatest, first=greatest)
        draws = tf.reshape(draws, (self.each, greatest, -1))
        picks = tf.transpose(random.without_replacement(draws, tf.transpose(sizes)), (2, 1, 0))  # (T, ways, each)
        if self.ordered:
            used = tf.range(self.each, dtype=tf.int64) < (shots + queries)[..., None]
            picks = tf.sort(tf.where(used, picks, tf.int64.max // 2))
        picks += tf.gather(tf.constant(self.classes.first, tf.int64), chosen)[..., None]
        # Queries come behind the supports, however many these are.
        drawn = self._pack(picks, tf.zeros_like(shots), shots, "support")
        return drawn | self._pack(picks, shots, queries, "query")

    def _numbers(self, seed, index, sizes):
        """Supports and queries of every class, `(T, ways)` each, 0 for those left out."""
        ways = self.ways.greatest
        count = self.shots.draws if self.joint else 1
        first = random.COUNTS + 1
        draws = random.uniform(seed, index, (2 + count) * ways, first)
        draws = tf.reshape(tf.transpose(draws), (-1, 2 + count, ways))

        def read(number, draw):
            drawn = number(draw if number.per_class else draw[:, :1])
            return tf.where(sizes > 0, drawn, 0)

        queries = read(self.queries, draws[:, 0])
        if self.joint:
            numbers = self.shots(tf.transpose(draws[:, 2:], (0, 2, 1)), sizes, queries)
            return self._checked(*(tf.cast(number, tf.int64) for number in numbers), sizes)
        shots = read(self.shots, draws[:, 1])
        if self.shots.at_most:
            kept = 1 if self.queries.at_most else queries
            shots = tf.where(sizes > 0, tf.minimum(shots, sizes - kept), 0)
        if self.queries.at_most:
            queries = tf.minimum(queries, sizes - shots)
        return shots, queries

    def _checked(self, shots, queries, sizes):
        """The numbers of a `Shots`, as it may be a user's."""
        present = sizes > 0
        promises = {
            "at least 1 for each class that takes part": tf.where(present, tf.minimum(shots, queries) >= 1, True),
            "0 for a class that is left out": tf.where(present, True, tf.maximum(shots, queries) == 0),
            "together no more than the class has": shots + queries <= sizes,
            f"shots of at most each={self.shots.each}": shots <= self.shots.each,
            f"shots of at most total={self.shots.total} together": tf.reduce_sum(shots, 1) <= self.shots.total,
        }
        name = type(self.shots).__name__
        checks = [
            tf.debugging.Assert(
                tf.reduce_all(kept), [f"`{name}` must give numbers {what}. Received shots, queries, sizes:", *numbers]
            )
            for numbers in [(shots, queries, sizes)]
            for what, kept in promises.items()
        ]
        with tf.control_dependencies(checks):
            return tf.identity(shots), tf.identity(queries)

    def _pack(self, picks, skipped, numbers, part):
        """Rows of `numbers` picks of every class behind the first `skipped`, one class after another."""
        ends = tf.cumsum(numbers, axis=1)
        tasks = tf.shape(ends)[0]
        position = tf.tile(tf.range(self.sizes[part], dtype=tf.int64)[None], (tasks, 1))
        valid = position < ends[:, -1:]
        label = tf.searchsorted(ends, position, side="right", out_type=tf.int64)
        label = tf.where(valid, label, 0)
        begin = tf.gather(ends - numbers, label, batch_dims=1)
        pick = position - begin + tf.gather(skipped, label, batch_dims=1)
        each = picks.shape[2]
        flat = tf.reshape(picks, (tasks, picks.shape[1] * each))
        rows = tf.gather(flat, tf.where(valid, label * each + pick, 0), batch_dims=1)
        rows = tf.gather(tf.constant(self.classes.rows, tf.int64), tf.where(valid, rows, 0))
        return {
            part: rows,
            f"{part}_y": tf.cast(label, tf.int32),
            f"{part}_weight": tf.cast(valid, tf.float32),
        }

    def labels(self, drawn, part):
        """Labels inside the episodes, `(T, S)` or `(T, Q)`, 0 for padding."""
        return drawn[f"{part}_y"]

    def weights(self, drawn, part):
        """1 for examples, 0 for padding."""
        return drawn[f"{part}_weight"]


def check_numbers(ways, shots, queries):
    """`(ways, shots, queries)` as `Count`s; a `Shots` stays what it is.

    Raises:
        ValueError: where one is out of range.
    """
    return (
        Count("ways", ways, 2, per_class=False),
        shots if isinstance(shots, Shots) else Count("shots", shots, 1),
        Count("queries", queries, 1),
    )


def sampler(classes, ways, shots, queries, ordered=False):
    """The `Balanced` or `Variable` sampler for numbers read by `check_numbers`.

    `ordered`: the examples of a class keep the order that they have in the arrays, supports before queries.
    """
    classes.check_ways(ways)
    numbers = [ways.fixed, getattr(shots, "fixed", None), queries.fixed]
    if None in numbers:
        return Variable(classes, ways, shots, queries, ordered)
    return Balanced(classes, *numbers, ordered)
