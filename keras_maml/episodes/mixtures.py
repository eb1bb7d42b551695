"""Episodes of several domains in one dataset, for cross-domain training and evaluation."""

import math
import numbers

import numpy as np
import tensorflow as tf

from keras_maml.episodes import draws as random
from keras_maml.episodes.pipeline import Plan, plan_of


def mixture(datasets, weights=None, seed=None, batches=None, start=0, shard=None):
    """Episodes of which each comes from a domain that is drawn for it.

        train = keras_maml.episodes.mixture({"characters": characters, "sketches": sketches}, weights=(3, 1), seed=0)

    The domain of an episode is a function of the seed and its index, as all else is; a batch holds tasks of several
    domains. `x["domain"]` says which, in the order of `datasets`; a `MetaModel` does not read it.

    Args:
        datasets: a dict of datasets by domain, as the builders of `keras_maml.episodes` and `keras_maml.datasets`
            return them, with the same shapes, dtypes and `tasks`. Only what an episode is comes from them, so they must
            be made without `seed`, `batches`, `start` and `shard`.
        weights: share of each domain, in the order of `datasets`, 0 or more, not all 0, of any sum; `None`: equal.
        seed: see `keras_maml.episodes.from_function`, and so `batches`, `start` and `shard`.

    Returns:
        A `tf.data.Dataset` of `(x, y)` or `(x, y, sample_weight)`, `x` with `"domain": (T,)`, `int32`.

    Raises:
        ValueError: if an argument is out of range, or the datasets do not fit together.
    """
    if not isinstance(datasets, dict) or len(datasets) < 2:
        raise ValueError(f"`datasets` must be a dict of two or more datasets by domain. Received: {datasets!r}.")
    names, plans = tuple(datasets), [plan_of(dataset) for dataset in datasets.values()]
    cumulative = _cumulative(weights, names)
    _check_plans(dict(zip(names, plans, strict=True)))
    spec = _common_spec(datasets)
    tasks = plans[0].tasks

    def draw(seed, index):
        chance = random.uniform(seed, index, 1, first=random.DOMAIN)[0]
        domain = tf.searchsorted(tf.constant(cumulative[:-1], tf.float64), chance, side="right")
        return {"index": index, "domain": domain, "seed": tf.fill(tf.shape(index), seed)}

    def read(drawn):
        domain, seed = drawn["domain"], drawn["seed"][0]
        # Each domain makes its own episodes only: the work is that of one batch, however many domains there are.
        places = tf.dynamic_partition(tf.range(tf.shape(domain)[0]), domain, len(plans))
        indices = [tf.gather(drawn["index"], place) for place in places]
        parts = [plan.element(seed, index) for plan, index in zip(plans, indices, strict=True)]
        flat = zip(tf.nest.flatten(spec), *map(tf.nest.flatten, parts), strict=True)
        # An empty part has no rows to tell the shape of.
        leaves = [
            tf.ensure_shape(
                tf.dynamic_stitch(places, [tf.reshape(leaf, (-1, *leaf_spec.shape[1:])) for leaf in leaves]),
                (domain.shape[0], *leaf_spec.shape[1:]),
            )
            for leaf_spec, *leaves in flat
        ]
        x, *rest = tf.nest.pack_sequence_as(spec, leaves)
        return (x | {"domain": domain}, *rest)

    more = {
        "classes": {key: label for plan in plans for key, label in plan.classes.items()},
        "domains": names,
        "augmentations": max(plan.augmentations for plan in plans),
    }
    return Plan(draw, tasks, seed, batches, start, shard, read, **more).dataset()


def _cumulative(weights, names):
    weights = [1.0] * len(names) if weights is None else list(weights)
    right = all(isinstance(w, numbers.Real) and 0 <= w < math.inf for w in weights) and sum(weights) > 0
    if len(weights) != len(names) or not right:
        raise ValueError(
            f"`weights` must be {len(names)} numbers of at least 0, not all 0, one for each of {list(names)}. "
            f"Received: {weights}."
        )
    return np.cumsum(weights) / np.sum(weights)


def _check_plans(plans):
    first, one = next(iter(plans.items()))
    for name, plan in plans.items():
        if plan.domains:
            raise ValueError(f"Domain '{name}' is a mixture itself. Give all of its datasets to one `mixture`.")
        if plan.tasks != one.tasks:
            raise ValueError(
                f"The datasets of a mixture share `tasks`. Received: {one.tasks} for '{first}', {plan.tasks} for "
                f"'{name}'."
            )
        said = {"seed": plan.seed, "batches": plan.batches, "start": plan.start or None, "shard": plan.shard}
        said = {key: value for key, value in said.items() if value is not None}
        if said:
            raise ValueError(
                f"Give {', '.join(said)} to `mixture`, which numbers the episodes, and not to the dataset of domain "
                f"'{name}'. Received there: {said}."
            )


def _common_spec(datasets):
    names = list(datasets)
    specs = [dataset.element_spec for dataset in datasets.values()]
    for name, spec in zip(names[1:], specs[1:], strict=True):
        try:
            tf.nest.assert_same_structure(specs[0], spec)
            same = tf.nest.flatten(specs[0]) == tf.nest.flatten(spec)
        except (ValueError, TypeError):
            same = False
        if not same:
            raise ValueError(
                "The episodes of a mixture must have the same shapes and dtypes; where numbers of ways or shots "
                "differ, give each domain the same range, such as `ways=(5, 20)`, and it is padded to the greatest. "
                f"Received: '{names[0]}': {specs[0]}, '{name}': {spec}."
            )
    return specs[0]
