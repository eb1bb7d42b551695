"""How the tasks of a batch run. They are independent: a mapping may run them in any way that gives the same numbers.

A mapping calls `function(episode, index)` for every task and returns what it stacks and what it averages. Gradients are
averaged inside the loop, never stacked where that costs memory, and no gradient is taken through a loop.
"""

import keras
import tensorflow as tf

from keras_maml.threads import available_cores


class TaskMapping:
    """Base class of task mappings. A new one implements `__call__`."""

    def __call__(self, function, episodes, specs):
        """Runs a function on every task.

        Args:
            function: `(episode, index) -> (stacked, averaged)`, two nested structures of tensors of one task, where
                `episode` is one task of `episodes` and `index` its number.
            episodes: nested structure of tensors, `(T, ...)`; T may be dynamic.
            specs: what `function` returns, with a `tf.TensorSpec` for each tensor.

        Returns:
            `(stacked, averaged)`: `(T, ...)` each, and means over the tasks. The mean of no task is 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `__call__`.")

    def without_xla(self):
        """The same mapping without XLA: itself, unless it compiles something by itself."""
        return self

    def describe(self, step):
        """How the tasks run, in a few words: the end of what `MetaModel.explain_task_mapping` says.

        Args:
            step: how the step around the tasks runs: `"graph"`, `"xla"` or `"eager"`.
        """
        return f"a mapping of your own in {step} steps"

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_maml")
class Parallel(TaskMapping):
    """A loop over the tasks, several at a time, that adds up what is averaged as it goes.

    Memory does not grow with the number of tasks. Best for convolutions, recurrent and attention layers,
    where the ordinary kernels of one task are faster than those of a vectorised batch of tasks with a set of weights
    each. Call `keras_maml.set_threads` before TensorFlow starts, so that a task has a thread of its own.

    Args:
        parallel_tasks: how many tasks may run at the same time, at least 1; default the number of cores.
    """

    def __init__(self, parallel_tasks=None):
        _check_positive(parallel_tasks=parallel_tasks)
        self.parallel_tasks = parallel_tasks

    def __call__(self, function, episodes, specs):
        first = tf.nest.flatten(episodes)[0]
        if first.shape[0] == 0:
            return _of_no_task(specs)  # XLA has no arrays of no element
        tasks = tf.shape(first)[0]

        def run(index):
            episode = tf.nest.map_structure(lambda values: values[index], episodes)
            stacked, averaged = function(episode, index)
            tf.nest.assert_same_structure(specs, (stacked, averaged))
            return tf.nest.flatten(stacked), tf.nest.flatten(averaged)

        def body(index, arrays, sums):
            stacked, averaged = run(index)
            arrays = [array.write(index, v) for array, v in zip(arrays, stacked, strict=True)]
            return index + 1, arrays, [s + v for s, v in zip(sums, averaged, strict=True)]

        arrays = [
            tf.TensorArray(spec.dtype, tasks, element_shape=spec.shape, infer_shape=False)
            for spec in tf.nest.flatten(specs[0])
        ]
        sums = [tf.zeros(spec.shape, spec.dtype) for spec in tf.nest.flatten(specs[1])]
        # Eagerly, `tf.while_loop` is a Python loop: steps of a debugger are those of the user's model.
        _, arrays, sums = tf.while_loop(
            lambda index, *_: index < tasks,
            body,
            (tf.constant(0), arrays, sums),
            parallel_iterations=self.parallel_tasks or available_cores(),
        )
        means = [total / tf.cast(tf.maximum(tasks, 1), total.dtype) for total in sums]
        return (
            tf.nest.pack_sequence_as(specs[0], [array.stack() for array in arrays]),
            tf.nest.pack_sequence_as(specs[1], means),
        )

    def describe(self, step):
        # XLA and Python run the body of a loop in turn.
        tasks = self.parallel_tasks or available_cores() if step == "graph" else 1
        how = f"{tasks} tasks at a time" if tasks > 1 else "one task at a time"
        return f"{how}, under XLA" if step == "xla" else how

    def get_config(self):
        return {"parallel_tasks": self.parallel_tasks}


@keras.saving.register_keras_serializable("keras_maml")
class UnrolledTasks(TaskMapping):
    """A Python loop over the tasks: a copy of the graph of one task for each.

    The number of tasks must be known when the step is traced. It is for operations that TensorFlow can run in no loop:
    with 32 tasks and four convolutions, a step takes as long as that of `Parallel`, the first one, which traces it, 7
    times as long, and 2.6 times the memory.
    """

    def __call__(self, function, episodes, specs):
        tasks = tf.nest.flatten(episodes)[0].shape[0]
        if tasks is None:
            raise ValueError(
                "`UnrolledTasks` needs the number of tasks when the step is traced, and it is unknown here, as it is "
                "for arrays and `PyDataset`s in `fit`. Batch a `tf.data.Dataset` with `drop_remainder=True`, or use "
                "`task_mapping='parallel'`."
            )
        if tasks == 0:
            return _of_no_task(specs)
        rows, sums = [], None
        for index in range(tasks):
            episode = tf.nest.map_structure(lambda values, index=index: values[index], episodes)
            stacked, averaged = function(episode, tf.constant(index))
            rows.append(stacked)
            sums = averaged if sums is None else tf.nest.map_structure(tf.add, sums, averaged)
        return (
            tf.nest.map_structure(lambda *values: tf.stack(values), *rows),
            tf.nest.map_structure(lambda total: total / tasks, sums),
        )

    def describe(self, step):
        return "one task after another" if step == "eager" else "a copy of the graph for each task"


@keras.saving.register_keras_serializable("keras_maml")
class Vectorized(TaskMapping):
    """Each op of one task made an op of many tasks (`tf.vectorized_map`), compiled by XLA.

    What is averaged is stacked first, so memory grows with the number of tasks in a chunk. More tasks than that run
    chunk after chunk, in a loop that adds up what is averaged:

    ```
    chunks = ceil(T / tasks_at_once)
    size = ceil(T / chunks)             # of every chunk: a shape to compile for, not two
    ```

    The last chunk begins `chunks * size - T` tasks early; their share of the mean is left out. Best for dense models.

    Args:
        jit_compile: whether XLA compiles the mapped function when it is part of a graph. A `MetaModel` does without XLA
            where a layer has rough second derivatives under it, see `mapping_choice.rough_under_xla`.
        tasks_at_once: most tasks in a chunk, at least 1. Default: all of them; in a `MetaModel` as many as its weights
            fit into `mapping_choice.STACKED_BYTES`.
    """

    def __init__(self, jit_compile=True, tasks_at_once=None):
        _check_positive(tasks_at_once=tasks_at_once)
        self.jit_compile = jit_compile
        self.tasks_at_once = tasks_at_once

    def __call__(self, function, episodes, specs):
        def mapped(episodes, indices, tasks, new=None):
            # Without its warnings: it has one for every random op that it runs in a loop.
            stacked, averaged = tf.vectorized_map(lambda pair: function(*pair), (episodes, indices), warn=False)

            def share(values):
                if new is not None:
                    # Not a product: the other tasks may be infinite.
                    mask = tf.reshape(new, [-1] + [1] * (len(values.shape) - 1))
                    values = tf.where(mask, values, tf.zeros([], values.dtype))
                return tf.reduce_sum(values, 0) / tf.cast(tasks, values.dtype)

            return stacked, tf.nest.map_structure(share, averaged)

        if not tf.executing_eagerly():
            # Inside a graph this is traced once for all branches; called eagerly it would be compiled anew every time.
            mapped = tf.function(mapped, jit_compile=self.jit_compile or None, autograph=False)
        tasks = tf.nest.flatten(episodes)[0].shape[0]
        if tasks is None:
            return self._of_unknown_number(mapped, episodes, specs)
        if tasks == 0:
            return _of_no_task(specs)
        if self.tasks_at_once is None or tasks <= self.tasks_at_once:
            return mapped(episodes, tf.range(tasks), tasks)
        return self._in_chunks(mapped, episodes, specs, tasks)

    def _of_unknown_number(self, mapped, episodes, specs):
        tasks = tf.shape(tf.nest.flatten(episodes)[0])[0]
        # A replica may have no task of a last batch, and a vectorised loop over nothing has no shapes.
        branches = [lambda: _of_no_task(specs), lambda: mapped(episodes, tf.range(tasks), tasks)]
        if self.tasks_at_once is None:
            return tf.cond(tasks > 0, branches[1], branches[0])
        branches[1] = lambda: mapped(episodes, tf.range(tasks), tasks, tf.fill([tasks], True))
        branches.append(lambda: self._in_chunks(mapped, episodes, specs, tasks))
        return tf.switch_case(tf.minimum(-(-tasks // self.tasks_at_once), 2), branches)

    def _in_chunks(self, mapped, episodes, specs, tasks):
        chunks = -(-tasks // self.tasks_at_once)
        size = -(-tasks // chunks)

        def body(chunk, arrays, means):
            indices = tf.minimum(chunk * size, tasks - size) + tf.range(size)
            some = tf.nest.map_structure(lambda values: tf.gather(values, indices), episodes)
            stacked, shares = mapped(some, indices, tasks, indices >= chunk * size)
            tf.nest.assert_same_structure(specs, (stacked, shares))
            arrays = [array.write(chunk, v) for array, v in zip(arrays, tf.nest.flatten(stacked), strict=True)]
            return chunk + 1, arrays, [m + v for m, v in zip(means, tf.nest.flatten(shares), strict=True)]

        rows = [size if isinstance(size, int) else None]
        arrays = [
            tf.TensorArray(spec.dtype, chunks, element_shape=rows + spec.shape, infer_shape=False)
            for spec in tf.nest.flatten(specs[0])
        ]
        means = [tf.zeros(spec.shape, spec.dtype) for spec in tf.nest.flatten(specs[1])]
        _, arrays, means = tf.while_loop(
            lambda chunk, *_: chunk < chunks, body, (tf.constant(0), arrays, means), parallel_iterations=1
        )

        def joined(array):
            values = array.stack()
            first = tf.reshape(values[:-1], tf.concat([[(chunks - 1) * size], tf.shape(values)[2:]], 0))
            return tf.concat([first[: tasks - size], values[-1]], 0)

        return (
            tf.nest.pack_sequence_as(specs[0], [joined(array) for array in arrays]),
            tf.nest.pack_sequence_as(specs[1], means),
        )

    def without_xla(self):
        return type(self).from_config({**self.get_config(), "jit_compile": False}) if self.jit_compile else self

    def describe(self, step):
        tasks = "all tasks" if self.tasks_at_once is None else f"up to {self.tasks_at_once:,} tasks"
        xla = step == "xla" or self.jit_compile and step == "graph"
        return f"{tasks} at once, {'under' if xla else 'without'} XLA"

    def get_config(self):
        return {"jit_compile": self.jit_compile, "tasks_at_once": self.tasks_at_once}


def _of_no_task(specs):
    def zeros(spec, *axes):
        return tf.zeros([*axes, *(1 if d is None else d for d in spec.shape)], spec.dtype)

    return tf.nest.map_structure(lambda spec: zeros(spec, 0), specs[0]), tf.nest.map_structure(zeros, specs[1])


def _check_positive(**arguments):
    for name, value in arguments.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"`{name}` must be an integer of at least 1, or None. Received: {name}={value!r}.")


def get(task_mapping):
    """A `TaskMapping` from itself or its name; `None` for `"auto"`."""
    if isinstance(task_mapping, TaskMapping):
        return task_mapping
    named = {"auto": None, "parallel": Parallel, "vectorized": Vectorized, "unrolled": UnrolledTasks}
    if isinstance(task_mapping, str) and task_mapping in named:
        kind = named[task_mapping]
        return kind and kind()
    raise ValueError(
        f"`task_mapping` must be a `TaskMapping` or one of {list(named)}. Received: task_mapping={task_mapping!r}."
    )
