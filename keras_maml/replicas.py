"""`tf.distribute`: what replicas with tasks of their own make of gradients and state."""

import tensorflow as tf


def share_of_tasks(stacked):
    """Share of a batch's tasks that this replica has; of a last batch it may have fewer than others, or none.

    Args:
        stacked: what the tasks stacked; skipped ones do not count.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.ones([])
    counted = tf.math.count_nonzero(stacked["finite"]) if "finite" in stacked else tf.shape(stacked["loss"])[0]
    tasks = tf.cast(counted, tf.float32)
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, tasks)
    return tf.where(total > 0, tf.math.divide_no_nan(tasks, total), 1 / context.num_replicas_in_sync)


def scaled(tensors, factor):
    """Tensors times a scalar; 0 where the scalar is 0."""
    # A replica without tasks may have NaN for the means of its tasks, and its factor is 0.
    return [tf.math.multiply_no_nan(tensor, tf.cast(factor, tensor.dtype)) for tensor in tensors]


def mean_over_replicas(gradients, stacked):
    """The mean over the tasks of all replicas, from that of each.

    Args:
        gradients: list of tensors, means over the tasks of this replica.
        stacked: what its tasks stacked.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradients
    return context.all_reduce(tf.distribute.ReduceOp.SUM, scaled(gradients, share_of_tasks(stacked)))


def write_mean(updates, share):
    """Assigns to variables the mean over all tasks: `updates` are pairs of a variable and this replica's mean."""
    if not updates:
        return
    variables, values = (list(part) for part in zip(*updates, strict=True))
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return

    def update(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            mean = strategy.extended.reduce_to(tf.distribute.ReduceOp.SUM, value, variable.value)
            strategy.extended.update(variable.value, lambda v, new: v.assign(new), args=(mean,))

    context.merge_call(update, args=(scaled(values, share),))
