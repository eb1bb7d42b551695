"""Threads for tasks that run side by side: several tasks at a time, each with few threads of its own."""

import os

import tensorflow as tf


def available_cores():
    """How many cores this process may use: those of its affinity mask, where the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(tasks, cores=None):
    """Sets TensorFlow's threads for tasks that run in parallel. Call it once, before TensorFlow starts:

    ```python
    keras_maml.set_threads(tasks=32)
    ```

    ```
    inter_op = cores                               # operations at a time, of one task or several
    intra_op = 1 if tasks >= cores else cores      # threads that all operations share
    ```

    By default TensorFlow has as many of both as cores, and divides every operation between all threads; those of one
    task are too small for that. One thread an operation and several tasks at a time is faster where the tasks run in
    parallel (`task_mapping.Parallel`: convolutions, recurrent and attention layers). With fewer tasks than cores the
    default stays, as tasks alone would leave cores idle.

    Vectorised models have many tasks in one operation, whose threads are the intra-op ones. On two cores one thread was
    no slower for them; with many cores, do not call it for a model that `explain_task_mapping` calls `Vectorized`.

    TensorFlow starts with the first tensor, variable, model or dataset, and reads these numbers once.

    Args:
        tasks: tasks of a batch (of one replica), at least 1.
        cores: how many cores to use, at least 1; default all that the process may run on.

    Raises:
        ValueError: if a number is not a positive integer.
        RuntimeError: if TensorFlow has started with other numbers of threads.
    """
    cores = available_cores() if cores is None else cores
    for name, value in (("tasks", tasks), ("cores", cores)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1. Received: {name}={value!r}.")
    inter_op, intra_op = cores, 1 if tasks >= cores else cores
    threading = tf.config.threading
    try:
        threading.set_inter_op_parallelism_threads(inter_op)
        threading.set_intra_op_parallelism_threads(intra_op)
    except RuntimeError as error:
        started = [threading.get_inter_op_parallelism_threads(), threading.get_intra_op_parallelism_threads()]
        if [number or available_cores() for number in started] == [inter_op, intra_op]:  # 0: as many as cores
            return
        raise RuntimeError(
            f"TensorFlow has started already, with {_describe(started[0])} inter-op and {_describe(started[1])} "
            f"intra-op threads, and cannot change to {inter_op} and {intra_op}. Call `keras_maml.set_threads` right "
            "after the imports, before the first tensor, model or dataset."
        ) from error


def _describe(threads):
    return threads or "default (one for each core)"
