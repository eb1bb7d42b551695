"""A batch of episodes as tasks: what every task needs, the mapping over them, and what comes back."""

import warnings

import tensorflow as tf

from keras_maml.adaptation import Task
from keras_maml.losses import keras_mask
from keras_maml.selection import seed_variables


def run_tasks(
    learner, mapping, one_task, batch, variables, outer_step, learned=None, copies=(), skip_non_finite=False
):
    """Maps a function over the tasks of a batch.

    Args:
        learner: the `Learner`.
        mapping: the `TaskMapping`.
        one_task: `(task, variables) -> (stacked, gradients, state)`: `stacked` is a dict with `"predictions"` and
            scalars.
        batch: `(x, y, sample_weight)`, x the dict of `MetaModel.call`, y and the weight `None` or `(T, Q, ...)`.
        variables: values of the meta-learned variables.
        outer_step: integer scalar, for seeds.
        learned: the meta-learned variables, where gradients and state are asked for.
        copies: endings of further members `"predictions_<ending>"` and `"loss_<ending>"` of `stacked`, of other numbers
            of steps.
        skip_non_finite: whether tasks whose loss, gradient or state is not finite are left out of the means. `stacked`
            then has a member `"finite"`, `(T,)` booleans.

    Returns:
        `(stacked, gradients, updates)`: `(T, ...)`; means over the tasks; pairs of a variable of the model's state that
        the tasks changed and its mean. The latter two are empty unless `learned` is given.
    """
    x, y, _ = batch
    state = [tf.convert_to_tensor(v) for v in learner.model.non_trainable]
    seeds = {id(v) for v in seed_variables(learner.model.function)}
    positions = [i for i, v in enumerate(learner.model.non_trainable) if id(v) in seeds]
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    batch_seed = tf.stack([tf.cast(outer_step, "int64"), tf.cast(replica, "int64")])
    episodes = _episodes(learner, batch)

    def function(episode, index):
        support = (*episode["support"], episode.get("support_weight"))
        query = (episode["query"][0], None if y is None else episode["query"][1], episode.get("query_weight"))
        seed = None
        if positions or (learned and learner.draws):
            seed = tf.random.experimental.stateless_fold_in(batch_seed, tf.cast(index, "int64"))
        stacked, gradients, after = one_task(Task(learner, support, query, state, seed, positions), variables)
        for name in [name for name in stacked if name.startswith("predictions")]:
            masks = tf.nest.map_structure(keras_mask, stacked[name])
            if any(mask is not None for mask in tf.nest.flatten(masks)):
                stacked[f"mask_of_{name}"] = masks
        averaged = (gradients, [after[i] for i in changed]) if learned else ()
        if skips:
            stacked["finite"] = _all_finite(stacked["loss"], *averaged)
            averaged = tf.nest.map_structure(lambda t: tf.where(stacked["finite"], t, tf.zeros([], t.dtype)), averaged)
        return stacked, averaged

    skips = skip_non_finite and y is not None
    specs, changed = _output_specs(learner, x["query_x"], state, y is not None, copies)
    changing = [learner.model.non_trainable[i] for i in changed]
    averaged = tf.nest.map_structure(_spec, (list(learned), changing)) if learned else ()
    if skips:
        specs["finite"] = tf.TensorSpec((), tf.bool)
    stacked, means = mapping(function, episodes, (specs, averaged))
    for name in [name for name in stacked if name.startswith("mask_of_")]:
        masks = tf.nest.flatten(stacked[name])
        for tensor, mask in zip(tf.nest.flatten(stacked[name.removeprefix("mask_of_")]), masks, strict=True):
            tensor._keras_mask = mask
    if not learned:
        return stacked, [], []
    gradients, values = means if not skips else _of_finite_tasks(*means, stacked["finite"], changing)
    return stacked, gradients, list(zip(changing, values, strict=True))


def _episodes(learner, batch):
    """A batch as the mapping takes it apart: tensors with a task axis, weights in the precision of the model's."""
    x, y, sample_weight = batch
    episodes = {"support": [x["support_x"], x["support_y"]], "query": [x["query_x"]]}
    if y is not None:
        episodes["query"].append(y)
    sample_weight = x.get("query_weight") if sample_weight is None else sample_weight
    precision = next((v.dtype for v in learner.model.trainable), learner.model.loss_dtype)  # all may be frozen
    for name, weight in (("support_weight", x.get("support_weight")), ("query_weight", sample_weight)):
        if weight is not None:
            episodes[name] = tf.cast(weight, precision)
    # Arrays, in a step that was compiled around them, cannot be sliced by the index of a loop.
    return tf.nest.map_structure(tf.convert_to_tensor, episodes)


def mean_loss(stacked):
    """The mean loss of a batch, over the tasks that are not skipped; NaN if all are."""
    if "finite" not in stacked:
        return tf.reduce_mean(stacked["loss"])
    return tf.reduce_mean(tf.boolean_mask(stacked["loss"], stacked["finite"]))


def _all_finite(*structures):
    parts = [tf.reduce_all(tf.math.is_finite(t)) for t in tf.nest.flatten(structures)]
    return tf.reduce_all(tf.stack(parts))


def _of_finite_tasks(gradients, values, finite, variables):
    """Means over the finite tasks, from means over all in which the others are 0; values as they were if none is."""
    tasks, kept = (tf.cast(n, tf.float32) for n in (tf.size(finite), tf.math.count_nonzero(finite)))
    factor = tf.math.divide_no_nan(tasks, kept)

    def over_kept(tensor):
        return tensor * tf.cast(factor, tensor.dtype)

    values = [
        tf.where(kept > 0, over_kept(value), tf.convert_to_tensor(variable))
        for value, variable in zip(values, variables, strict=True)
    ]
    return [over_kept(gradient) for gradient in gradients], values


def _output_specs(learner, query_x, state, with_loss, copies):
    """Specs of what tasks stack, and the positions of the floating point state that a call on queries changes."""
    changed = []

    def forward(params, state, query_x):
        predictions, _, after = learner.model(params, state, query_x, learner.training, "query")
        # Frozen weights and constants stay the very same tensor. To write back their mean over the tasks would
        # round them, and a vectorised mapping cannot return what comes from outside it.
        same = [a is b for a, b in zip(state, after, strict=True)]
        changed.extend(i for i, v in enumerate(after) if v.dtype.is_floating and not same[i])
        if learner.model.strays:
            warnings.warn(
                f"Model '{learner.model.function.name}' changes variables that it does not track, most likely Keras's "
                "global seed generator: it draws the same numbers in every step and task. Give the layer a "
                "`keras.random.SeedGenerator` attribute and pass it as `seed`.",
                stacklevel=2,
            )
        masks = tf.nest.map_structure(keras_mask, predictions)
        masked = any(mask is not None for mask in tf.nest.flatten(masks))
        return (predictions, masks) if masked else (predictions,)

    example = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), query_x)
    params = [_spec(v) for v in learner.model.trainable]
    traced = tf.function(forward, autograph=False).get_concrete_function(params, [_spec(t) for t in state], example)
    predictions, *mask = tf.nest.map_structure(_spec, traced.structured_outputs)
    stacked = {"predictions": predictions}
    if mask:
        stacked["mask_of_predictions"] = mask[0]
    if with_loss:
        stacked["loss"] = tf.TensorSpec((), learner.model.loss_dtype)
        stacked |= {f"{name}_{ending}": value for ending in copies for name, value in stacked.items()}
    return stacked, changed


def _spec(tensor):
    return tf.TensorSpec(tensor.shape, tensor.dtype)
