"""From a function of `(seed, index)` to a `tf.data.Dataset`: the base of every builder of episodes.

An element is one batch of `T` tasks, an ordinary Keras `(x, y)` or `(x, y, sample_weight)`:

    x = {"support_x": (T, S, ...), "support_y": (T, S), "query_x": (T, Q, ...)}
    y = query_y: (T, Q)

The invariant: task `t` of batch `b` is episode `index = start + b * tasks + t`, and an episode depends on the seed and
its index alone. So it stays the same whatever the batch size, the number of batches and the order in which parallel
calls finish; a run that stopped goes on with `start=`, and workers that take turns share the batches out.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_maml.arguments import check_whole
from keras_maml.autotuning import without_autotuning


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A fixed set of episodes, see `fixed`."""

    episodes: int
    seed: int = 0


def fixed(n, seed=0):
    """A fixed set of `n` episodes, for the argument `seed` of a builder: every model is judged on the same tasks.

        test = keras_maml.episodes.from_arrays(x, labels, 5, 1, 15, tasks=20, seed=keras_maml.episodes.fixed(600))

    The dataset has `n / tasks` batches, every pass over it yields the same ones, and they stay the same for another
    number of tasks a batch. They are none of those that a small integer as seed gives, so a family of
    functions may be trained on with `seed=0` and judged with `fixed(600)`.

    Args:
        n: number of episodes, at least 1, a multiple of `tasks`.
        seed: 0 or more, for another set.

    Raises:
        ValueError: if an argument is out of range; from the builder, if `n` is no multiple of `tasks`.
    """
    check_whole(1, n=n)
    check_whole(0, seed=seed)
    return Fixed(n, seed)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a dataset of episodes is made of; the attribute `plan` of every dataset that a builder returns.

    Args:
        draw: `(seed, index) -> drawn`: `seed` an `int64` scalar, `index` `(T,)` `int64`, `drawn` a nested structure of
            tensors `(T, ...)`. Many tiny operations: computed for `block` batches at once.
        tasks, seed, batches, start, shard: see `from_function`.
        read: `drawn -> element`, a few large operations, computed for each batch; default: `drawn` is the element.
        block: batches that one call of `draw` computes.
        classes: what tells the classes that episodes are made of, `{fingerprint: label}`; empty if there are none.
        domains: names of the sources of a mixture, in the order of their ids.
        augmentations: how often `augment` was called, so that each call has random numbers of its own.
    """

    draw: Callable
    tasks: int
    seed: int | Fixed | None = None
    batches: int | None = None
    start: int = 0
    shard: tuple | None = None
    read: Callable | None = None
    block: int = 1
    classes: dict = dataclasses.field(default_factory=dict)
    domains: tuple = ()
    augmentations: int = 0

    def __post_init__(self):
        check_counts(self.tasks, self.seed, self.batches, self.start, self.shard)
        check_whole(1, block=self.block)

    def element(self, seed, index):
        """The episodes of the given indices, as one batch."""
        drawn = self.draw(seed, index)
        return drawn if self.read is None else self.read(drawn)

    def dataset(self):
        """The `tf.data.Dataset` of these episodes."""
        seed, batches = _seed_and_batches(self)
        turn, turns = self.shard or (0, 1)
        # A block must not reach beyond the end: cut off by `take`, the rest would be lost for every worker of tf.data
        # service apart.
        block = self.block if batches is None else max(n for n in range(1, self.block + 1) if batches % n == 0)

        def compute(position, seed=seed):
            batch = turn + turns * (position * block + tf.range(block, dtype=tf.int64))
            index = self.start + batch[:, None] * self.tasks + tf.range(self.tasks, dtype=tf.int64)
            drawn = self.draw(tf.convert_to_tensor(seed, tf.int64), tf.reshape(index, (block * self.tasks,)))
            _check_tasks(drawn, block * self.tasks)
            return drawn if block == 1 else tf.nest.map_structure(cut, drawn)

        def cut(leaf):
            return tf.reshape(leaf, (block, self.tasks, *leaf.shape[1:]))

        # `Dataset.counter` counts anew in every worker of tf.data service; a range is shared out.
        positions = tf.data.Dataset.range(tf.int64.max if batches is None else batches // block)
        if seed is None:
            positions = positions.scan(np.int64(-1), _with_fresh_seed)
        dataset = positions.map(compute, num_parallel_calls=tf.data.AUTOTUNE)
        if block > 1:
            dataset = dataset.unbatch()
        if self.read is not None:
            read = self.read
            # A tuple is spread over arguments by tf.data.
            whole = lambda *drawn: read(drawn if len(drawn) > 1 else drawn[0])  # noqa: E731
            dataset = dataset.map(whole, num_parallel_calls=tf.data.AUTOTUNE)
        options = tf.data.Options()
        # A fresh seed, once drawn, is a state of the iterator: that the system's generator cannot be saved matters not.
        options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
        dataset = without_autotuning(dataset.prefetch(tf.data.AUTOTUNE).with_options(options))
        dataset.plan = self
        return dataset


def plan_of(dataset):
    """The `Plan` of a dataset.

    Raises:
        ValueError: if it is not what a builder returned.
    """
    plan = getattr(dataset, "plan", None)
    if not isinstance(plan, Plan):
        raise ValueError(
            "Expected a dataset as a builder of `keras_maml.episodes` or `keras_maml.datasets` returned it, before "
            f"`map`, `prefetch` and the like. Received: {type(dataset).__name__}."
        )
    return plan


def from_function(function, tasks, seed=None, batches=None, start=0, block=1, shard=None):
    """Episodes that a function computes from their indices.

        batch[b] = function(seed, start + b * tasks + [0, ..., tasks - 1])

    `keras_maml.datasets.sinusoid` is an example of such a function.

    Args:
        function: `(seed, index) -> element`, of TensorFlow ops: `seed` an `int64` scalar, `index` `(T,)` `int64`; `T`
            is the first axis of all that it returns. Draw by `uniform`, for every index at once.
        tasks: episodes a batch, `T`, at least 1.
        seed: 0 or more: every iterator yields the same episodes. `None`: every iterator, so every pass over the
            dataset, yields fresh ones. `keras_maml.episodes.fixed(n)`: a fixed set of `n` episodes.
        batches: length, at least 1. `None`: infinite; `fit` then needs `steps_per_epoch`.
        start: index of the first episode, 0 or more. To resume a run: `batches_done * tasks`, times `count` of a shard.
        block: batches that one call computes, with `index` `(block * T,)`. Changes no episode; worth it for small
            elements, whose time goes in starting ops.
        shard: `(worker, count)`: of every `count` batches this dataset yields the one numbered `worker`, from 0, so
            that `count` workers with one seed share the batches out; `batches` counts those of this worker. For
            `tf.distribute` these are `input_pipeline_id` and `num_input_pipelines` of the input context.

    Returns:
        A `tf.data.Dataset` of what `function` returns.

    Raises:
        ValueError: if an argument is out of range.
    """
    return Plan(function, tasks, seed, batches, start, shard, block=block).dataset()


def check_counts(tasks, seed=None, batches=None, start=0, shard=None):
    """Raises `ValueError` where an argument of `from_function` is out of range."""
    check_whole(1, tasks=tasks)
    check_whole(1, batches=1 if batches is None else batches)
    check_whole(0, start=start)
    if isinstance(seed, Fixed):
        if start:
            raise ValueError(
                f"A fixed set of episodes begins with its first. Received: seed=fixed({seed.episodes}), start={start}. "
                "Leave `start` out; `dataset.skip(n)` leaves out batches."
            )
        if batches is not None or seed.episodes % tasks:
            raise ValueError(
                f"`seed=fixed({seed.episodes})` has {seed.episodes} / tasks batches. Received: tasks={tasks}, "
                f"batches={batches}. Leave `batches` out, and choose numbers of which one divides the other."
            )
    else:
        check_whole(0, seed=0 if seed is None else seed)
    if shard is not None:
        if not isinstance(shard, (tuple, list)) or len(shard) != 2:
            raise ValueError(f"`shard` must be (worker, count). Received: shard={shard!r}.")
        worker, count = shard
        check_whole(0, **{"shard[0]": worker})
        check_whole(worker + 1, **{"shard[1]": count})
        if isinstance(seed, Fixed) and seed.episodes // tasks <= worker:
            raise ValueError(
                f"{seed.episodes} fixed episodes are {seed.episodes // tasks} batches of {tasks}, so nothing is left "
                f"for worker {worker} of {count}. Lower `tasks`."
            )


def _check_tasks(drawn, tasks):
    for leaf in tf.nest.flatten(drawn):
        shape = tf.convert_to_tensor(leaf).shape
        if shape.rank == 0 or shape[0] not in (None, tasks):
            raise ValueError(
                f"A function of episodes must give `(T, ...)` for {tasks} indices `(T,)`. Received: shape {shape}. "
                "Compute every tensor for all indices at once."
            )


def _seed_and_batches(plan):
    if not isinstance(plan.seed, Fixed):
        return plan.seed, plan.batches
    worker, count = plan.shard or (0, 1)
    # Odd multiples of the increment of SplitMix64, below 2**63: far from what anyone writes as a seed.
    seed = (2 * plan.seed.seed + 1) * 0x9E3779B97F4A7C15 % 2**63
    return seed, -(-(plan.seed.episodes // plan.tasks - worker) // count)


def _with_fresh_seed(seed, position):
    # Drawn at the first element of an iterator. With both seeds 0 the raw op asks the system, where tf.random.uniform
    # would read the global seed.
    shape, low, high = tf.constant([], tf.int32), np.int64(0), np.int64(2**63 - 1)
    fresh = tf.raw_ops.RandomUniformInt(shape=shape, minval=low, maxval=high, seed=0, seed2=0)
    seed = tf.where(seed < 0, fresh, seed)
    return seed, (position, seed)
