"""Peak memory of a training step, predicted without running it.

The meta-gradient of a batch is traced with the shapes of its episodes, and once more for an inner step and for a task
more. `liveness` says what each of the graphs takes; weights, the batch and what any first step takes come on top.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_maml.batches import run_tasks
from keras_maml.inner_loop import MOST_UNROLLED_STEPS
from keras_maml.liveness import Simulation, graph_bytes

# What the first step of any model takes: threads, the optimizer's graph, buffers of the compiler. 68 to 95 MiB there.
BYTES_OF_A_STEP = 85 * 2**20


@dataclasses.dataclass(frozen=True)
class MemoryPrediction:
    """What a training step takes, in bytes, above what the process has before a model is built.

    Args:
        peak_bytes: at most at a time, with weights and the batch.
        per_task_bytes: what one more task adds.
        per_step_bytes: what one more inner step adds.
        weights_bytes: of that, weights and the optimizer's variables.
        mapping: how the tasks run, as `MetaModel.explain_task_mapping` says it.
    """

    peak_bytes: int
    per_task_bytes: int
    per_step_bytes: int
    weights_bytes: int
    mapping: str

    def __str__(self):
        names = ("peak_bytes", "per_step_bytes", "per_task_bytes", "weights_bytes")
        peak, step, task, weights = (getattr(self, name) / 2**20 for name in names)
        return (
            f"A training step takes {peak:,.0f} MiB at its peak, {weights:,.1f} MiB of them for weights and the "
            f"optimizer; {step:,.1f} MiB for each further inner step, {task:,.2f} MiB for each further task. "
            f"{self.mapping}"
        )


def predict_memory(meta_model, x, y, sample_weight=None):
    """Predicts the memory of a training step in a graph from its graph; nothing is run.

    Growth by an inner step is within 25 % of that of resident memory for the nets of benchmarks/README.md, but for
    large stacks of weights under XLA, of which this sees half. A peak varies by 10 % from run to run. On a GPU the
    tensors are in its memory, and the graph is not.

    Args:
        meta_model: a compiled `MetaModel`. Its model and optimizer are built if they are not.
        x: the dict of `MetaModel.call`, arrays or tensors.
        y: `(T, Q, ...)`.
        sample_weight: `(T, Q)` or `None`.

    Returns:
        A `MemoryPrediction` for T tasks and the algorithm's `steps`.

    Raises:
        ValueError: if the MetaModel is not compiled, or the episodes do not fit to it.
    """
    if not meta_model.compiled:
        raise ValueError(
            "The memory of a training step depends on loss and optimizer. Received: a MetaModel that is not compiled. "
            "Call `compile(optimizer=..., loss=...)` first."
        )
    meta_model._prepare(x, y, sample_weight)
    if not meta_model.optimizer.built:
        meta_model.optimizer.build(meta_model.trainable_variables)
    batch = tf.nest.map_structure(lambda leaf: _spec(leaf, meta_model.compute_dtype), (x, y, sample_weight))
    tasks, steps = tf.nest.flatten(batch)[0].shape[0], meta_model.algorithm.steps
    now = _bytes(meta_model, batch, steps)
    # Beyond that number, steps are a loop: another way than the one that is asked about.
    before = steps == MOST_UNROLLED_STEPS
    other = _bytes(meta_model, batch, steps - 1 if before else steps + 1)
    larger = tf.nest.map_structure(lambda s: s and tf.TensorSpec([tasks + 1, *s.shape[1:]], s.dtype), batch)
    data = sum(math.prod(spec.shape) * spec.dtype.size for spec in tf.nest.flatten(batch) if spec is not None)
    per_task = data // tasks + _bytes(meta_model, larger, steps) - now
    variables = {id(v): v for v in (*meta_model.variables, *meta_model.optimizer.variables)}
    weights = sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables.values())
    return MemoryPrediction(
        peak_bytes=BYTES_OF_A_STEP + weights + data + now,
        # A chunk of tasks may become smaller by one more task, as it makes two of it.
        per_task_bytes=max(per_task, data // tasks),
        per_step_bytes=now - other if before else other - now,
        weights_bytes=weights,
        mapping=meta_model.explain_task_mapping(),
    )


def _spec(leaf, dtype):
    if leaf is None:
        return None
    leaf = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    own = tf.as_dtype(leaf.dtype)
    return tf.TensorSpec(leaf.shape, dtype if own.is_floating else own)  # arrays are cast before a step sees them


def _bytes(meta_model, batch, steps):
    """Graph and tensors of the meta-gradient with a number of inner steps."""

    def one_task(task, variables):
        result = meta_model.meta_gradient(task, variables)
        stacked = {"predictions": result.predictions, "loss": result.loss, **meta_model._before_task(task, variables)}
        return stacked, list(result.gradients), result.state

    def meta_gradient(*batch):
        variables = [tf.convert_to_tensor(v) for v in meta_model.trainable_variables]
        return run_tasks(
            meta_model._learner(True, steps),
            meta_model._mapping_for(variables)[0],
            one_task,
            batch,
            variables,
            meta_model.outer_step,
            learned=meta_model.trainable_variables,
            copies=meta_model._copies,
            skip_non_finite=meta_model.skip_non_finite,
        )[:2]

    graph = tf.function(meta_gradient, autograph=False).get_concrete_function(*batch).graph
    return Simulation(graph).peak + graph_bytes(graph, compiled=bool(meta_model.jit_compile))
