"""What a reader must know of an evaluation to repeat it."""

import platform

import keras
import numpy as np
import tensorflow as tf

from keras_maml.episodes.pipeline import Fixed, Plan
from keras_maml.layers import PerStepBatchNormalization, statistics_of
from keras_maml.selection import Exclude, Head, flatten_layers

STATISTICS = {
    "batch": "batch (transductive: queries by their own moments)",
    "support": "support (queries by the moments of the supports)",
    "moving": "moving (learned moments)",
}


def protocol(meta_model, episodes, steps, sizes):
    """A dict of strings and numbers, in the order in which they are read.

    Args:
        meta_model: a `MetaModel`.
        episodes: the dataset.
        steps: numbers of inner steps that were judged.
        sizes: what `sizes_of_tasks` found, of all tasks.
    """
    algorithm = meta_model.algorithm
    evaluation_steps = algorithm.steps if algorithm.evaluation_steps is None else algorithm.evaluation_steps
    return {
        "model": meta_model.model.name,
        "tasks": len(next(iter(sizes.values()))),
        **_describe_sizes(sizes),
        "steps": list(steps),
        "algorithm": describe_algorithm(algorithm),
        "training_steps": algorithm.steps,
        "evaluation_steps": evaluation_steps,
        "outer_steps": int(meta_model.outer_step.numpy()),
        "normalisation": describe_normalisation(meta_model.model),
        "seed": describe_seed(episodes),
        "precision": meta_model.model.dtype_policy.name,
        "versions": versions(),
    }


def sizes_of_tasks(x, y, sample_weight):
    """Numbers of examples of weight above 0 of each task, `(T,)` `int64`: `"supports"`, `"queries"`, and for integer
    labels `"ways"`, `"fewest_shots"` and `"most_shots"`."""
    labels = tf.nest.flatten(x["support_y"])[0]
    real = _real(x.get("support_weight"), labels)
    sizes = {"supports": _count(real), "queries": _count(_real(sample_weight, tf.nest.flatten(y)[0]))}
    if tf.nest.is_nested(x["support_y"]) or not labels.dtype.is_integer or labels.shape.rank not in (2, 3):
        return sizes
    if labels.shape.rank == 3:
        if labels.shape[2] != 1:
            return sizes
        labels = labels[:, :, 0]

    def of_task(task):
        _, _, counts = tf.unique_with_counts(tf.boolean_mask(*task), tf.int64)
        return tf.size(counts, tf.int64), tf.reduce_min(counts), tf.reduce_max(counts)

    found = tf.map_fn(of_task, (labels, real), fn_output_signature=(tf.int64,) * 3)
    return sizes | dict(zip(("ways", "fewest_shots", "most_shots"), found, strict=True))


def describe_algorithm(algorithm):
    """The parts of an algorithm in words."""
    rule = _call(type(algorithm.rule).__name__, algorithm.rule.get_config())
    # Without settings a name alone, as that of a rule is.
    parts = f"{rule}, {_call(type(algorithm.meta_gradient).__name__, algorithm.meta_gradient.get_config())}"
    parts = parts.removesuffix("()")
    if algorithm.start is not None:
        parts += f", starts from {_call(type(algorithm.start).__name__, algorithm.start.get_config())}"
    return parts if algorithm.layers is None else f"{parts}, adapts {_describe_layers(algorithm.layers)}"


def describe_rate(rule):
    """The learning rate of a rule, a number or a schedule, in words; None where it has none."""
    return _setting(rule.get_config().get("learning_rate"))


def _call(name, config):
    """`Name(setting=value, ...)`, without what is off."""
    hidden = ("name", "dtype", "trainable")
    shown = {k: v for k, v in config.items() if k not in hidden and v is not None and v is not False}
    return f"{name}({', '.join(f'{k}={_setting(v)}' for k, v in shown.items())})"


def _setting(value):
    if isinstance(value, dict) and "class_name" in value:  # as Keras serializes an object
        return _call(value["class_name"], value["config"])
    return value


def _describe_layers(layers):
    if isinstance(layers, Exclude):
        return f"all but {_describe_layers(layers.layers)}"
    if isinstance(layers, tuple):
        return ", ".join(map(_describe_layers, layers))
    if isinstance(layers, Head):
        return "the head"
    # A name, a layer or a predicate on variables.
    return layers if isinstance(layers, str) else getattr(layers, "name", getattr(layers, "__name__", "some weights"))


def describe_normalisation(model):
    """Whose moments the batch normalisation layers of a model use, in words."""
    layers = [layer for layer in flatten_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    kinds = sorted({STATISTICS[statistics_of(layer)] + _of_steps(layer) for layer in layers})
    return "; ".join(kinds) or "no batch normalisation"


def _of_steps(layer):
    """What of a normalisation layer differs by inner step, in words."""
    if not isinstance(layer, PerStepBatchNormalization):
        return ""
    parts = {"weights": (layer.gamma, layer.beta), "moments": (layer.moving_mean,)}
    own = [name for name, variables in parts.items() if any(v is not None and len(v.shape) == 2 for v in variables)]
    return f", {' and '.join(own)} of each of {layer.steps} steps"


def versions():
    """Of what the numbers depend on."""
    import keras_maml

    return {
        "keras_maml": keras_maml.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _describe_sizes(sizes):
    if "ways" not in sizes:
        return {f"{name}_of_a_task": _range(values) for name, values in sizes.items()}
    shots = np.concatenate([sizes["fewest_shots"], sizes["most_shots"]])
    queries = sizes["queries"] / np.maximum(sizes["ways"], 1)
    return {"ways": _range(sizes["ways"]), "shots": _range(shots), "queries": _range(queries)}


def describe_seed(episodes):
    """Which episodes a dataset yields, in words."""
    plan = getattr(episodes, "plan", None)
    if not isinstance(plan, Plan):
        return "unknown (not a dataset of `keras_maml.episodes`)"
    if isinstance(plan.seed, Fixed):
        return f"fixed({plan.seed.episodes}, seed={plan.seed.seed})"
    return "fresh" if plan.seed is None else f"{plan.seed}, from episode {plan.start}"


def _real(weight, labels):
    return tf.ones(tf.shape(labels)[:2], tf.bool) if weight is None else weight > 0


def _count(real):
    return tf.reduce_sum(tf.cast(real, tf.int64), 1)


def _range(values):
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
