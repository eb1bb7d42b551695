"""How the tasks of a batch run. They are independent: a mapping may run them in any way that gives the same numbers.

A mapping calls `function(episode, index)` for every task and returns what it stacks and what it averages. Gradients are
averaged inside the loop, never stacked where that costs memory, and no gradient is taken through a loop.
"""

import math
import os

import keras
import tensorflow as tf

from keras_maml.selection import flatten_layers

MOST_STACKED_WEIGHTS = 100_000
_KINDS = (
    *("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    *("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
    *("RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D"),
)
NOT_VECTORIZED = tuple(getattr(keras.layers, kind) for kind in _KINDS)
# XLA packs the second derivative of a max-pooling with its position into one word, which rounds it to bfloat16: about
# 1 % error of a meta-gradient (TensorFlow 2.21; average pooling is exact, and so is everything to first order).
ROUGH_UNDER_XLA = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)


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

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_maml")
class Parallel(TaskMapping):
    """A loop over the tasks, several at a time, that adds up what is averaged as it goes.

    Memory does not grow with the number of tasks. Best for convolutions and recurrent layers on CPU, where the ordinary
    kernels of one task are faster than those of a vectorised batch of tasks with a set of weights each.

    Args:
        parallel_tasks: how many tasks may run at the same time, at least 1; default the number of cores.
    """

    def __init__(self, parallel_tasks=None):
        if parallel_tasks is not None and parallel_tasks < 1:
            raise ValueError(f"`parallel_tasks` must be at least 1. Received: {parallel_tasks}.")
        self.parallel_tasks = parallel_tasks

    def __call__(self, function, episodes, specs):
        tasks = tf.shape(tf.nest.flatten(episodes)[0])[0]

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
            parallel_iterations=self.parallel_tasks or os.cpu_count() or 1,
        )
        means = [total / tf.cast(tf.maximum(tasks, 1), total.dtype) for total in sums]
        return (
            tf.nest.pack_sequence_as(specs[0], [array.stack() for array in arrays]),
            tf.nest.pack_sequence_as(specs[1], means),
        )

    def get_config(self):
        return {"parallel_tasks": self.parallel_tasks}


@keras.saving.register_keras_serializable("keras_maml")
class Vectorized(TaskMapping):
    """All tasks at once, each op of one task made an op of the batch (`tf.vectorized_map`), compiled by XLA.

    What is averaged is stacked first, so memory grows with the number of tasks. Best for dense and attention models.

    Args:
        jit_compile: whether XLA compiles the mapped function when it is part of a graph. A `MetaModel` does without XLA
            where a layer has rough second derivatives under it (max-pooling).
    """

    def __init__(self, jit_compile=True):
        self.jit_compile = jit_compile

    def __call__(self, function, episodes, specs):
        def mapped(episodes):
            tasks = tf.shape(tf.nest.flatten(episodes)[0])[0]
            # Without its warnings: it has one for every random op that it runs in a loop.
            stacked, averaged = tf.vectorized_map(
                lambda pair: function(*pair), (episodes, tf.range(tasks)), warn=False
            )
            return stacked, tf.nest.map_structure(lambda values: tf.reduce_mean(values, 0), averaged)

        if self.jit_compile and not tf.executing_eagerly():
            # Inside a graph this is traced once; called eagerly it would be compiled anew every time.
            mapped = tf.function(mapped, jit_compile=True, autograph=False)
        first = tf.nest.flatten(episodes)[0]
        if first.shape[0]:
            return mapped(episodes)

        def of_no_task():
            def zeros(spec, *axes):
                return tf.zeros([*axes, *(1 if d is None else d for d in spec.shape)], spec.dtype)

            return tf.nest.map_structure(lambda spec: zeros(spec, 0), specs[0]), tf.nest.map_structure(zeros, specs[1])

        # A replica may have no task of a last batch, and a vectorised loop over nothing has no shapes.
        return tf.cond(tf.shape(first)[0] > 0, lambda: mapped(episodes), of_no_task)

    def without_xla(self):
        return Vectorized(jit_compile=False)

    def get_config(self):
        return {"jit_compile": self.jit_compile}


def choose(model, variables):
    """The mapping for a model, and the reason. The choice is one for CPUs; on a GPU it is the same, unmeasured.

    Args:
        model: a built Keras model.
        variables: the meta-learned variables, whose gradients a vectorised mapping stacks.

    Returns:
        `(mapping, reason)`.
    """
    slow = [layer.name for layer in flatten_layers(model) if isinstance(layer, NOT_VECTORIZED)]
    weights = sum(math.prod(v.shape) for v in variables)
    if slow:
        return Parallel(), (
            f"layer '{slow[0]}' convolves or recurs, which is slow with a set of weights for each task"
        )
    if any(type(layer).__module__.split(".")[0] not in ("keras", "keras_maml") for layer in flatten_layers(model)):
        return Parallel(), "the model has layers of its own, of which it is not known whether they vectorise"
    unfit = [layer.name for layer in flatten_layers(model) if not getattr(layer, "supports_jit", True)]
    if unfit:
        return Parallel(), f"XLA cannot compile layer '{unfit[0]}'"
    if weights > MOST_STACKED_WEIGHTS:
        return Parallel(), f"{weights:,} weights: a stack of their gradients, one for each task, costs memory"
    return Vectorized(), f"dense layers with {weights:,} weights: one op for all tasks beats one for each"


def rough_under_xla(model):
    """Names of layers whose second derivatives XLA rounds to bfloat16."""
    return [layer.name for layer in flatten_layers(model) if isinstance(layer, ROUGH_UNDER_XLA)]


def get(task_mapping):
    """A `TaskMapping` from itself or its name; `None` for `"auto"`."""
    if isinstance(task_mapping, TaskMapping):
        return task_mapping
    named = {"auto": None, "parallel": Parallel, "vectorized": Vectorized}
    if isinstance(task_mapping, str) and task_mapping in named:
        kind = named[task_mapping]
        return kind and kind()
    raise ValueError(
        f"`task_mapping` must be a `TaskMapping` or one of {list(named)}. Received: task_mapping={task_mapping!r}."
    )
