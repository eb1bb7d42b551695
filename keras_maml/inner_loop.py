"""The inner steps of one task: unrolled while they are few, a loop beyond.

A step is a pure function `step(constants, carry, index) -> carry`: `carry` is what steps move, `constants` all else
that the outer gradient is taken through, both nested structures of tensors. What a step captures gets no gradient.

| | traced | kept for the backward pass | cost of a second-order step, in forward passes |
|---|---|---|---|
| unrolled | K times | every intermediate result of every step | 9 |
| loop | once | the carry before each step, `phi_k` | 11, or 12 if the rule is not linear in the gradient |
| loop, `differentiable=False` | once | nothing | 3 |

The loop has a gradient of its own, another loop that runs backwards: it makes a step again from the carry before it,
and takes its vector-Jacobian product. Ways not taken: TensorFlow's own gradient of a loop keeps every intermediate
result in lists, which XLA cannot compile inside `tf.vectorized_map`; `tf.recompute_grad` around parts of a step is a
gradient of zero, or an error, to second order; recomputations in an unrolled graph are merged with the first
computation, or run before the backward pass needs them, and then save nothing.
"""

import tensorflow as tf

# Ten unrolled steps of a four-layer convolutional net take 12 s to trace and compile, and a second more for each step
# beyond; a loop takes 3 s for any number, and its meta-step is 1.1 to 1.3 times as long.
MOST_UNROLLED_STEPS = 10


def repeat(step, constants, carry, first, last, differentiable=True, rematerialize=False, many=False):
    """The carry after the steps `first, ..., last - 1`.

    Args:
        step: `(constants, carry, index) -> carry`; `index` is an integer or, in a loop, an int32 scalar.
        constants: nested structure; members that are no tensors of floats get no gradient.
        carry: nested structure of tensors, of the same structure, shapes and dtypes after every step.
        first: number of steps made before, an integer.
        last: number of steps made after, an integer.
        differentiable: whether an outer gradient may be taken through a loop.
        rematerialize: whether to take the loop whatever the number of steps, for its memory.
        many: whether these steps are some of many, so that a loop is taken for more than one.

    Raises:
        ValueError: if, in a loop, a step changes the structure of the carry.
    """
    if last - first <= (1 if many else MOST_UNROLLED_STEPS) and not (rematerialize and differentiable):
        for index in range(first, last):
            carry = step(constants, carry, index)
        return carry
    if first == last:
        return carry
    carry = tf.nest.map_structure(tf.convert_to_tensor, carry)
    if differentiable:
        return _differentiable_loop(step, constants, carry, first, last)
    return _loop(step, constants, carry, first, last)[0]


def replace(values, positions, replacements):
    """A copy of a list with other members at some positions."""
    result = list(values)
    for position, replacement in zip(positions, replacements, strict=True):
        result[position] = replacement
    return result


def _loop(step, constants, carry, first, last, keep=False):
    """`(carry, histories)`: for each tensor of the carry its values before each step, if kept."""
    # XLA cannot compile a loop over a `TensorArray` inside `tf.vectorized_map`, which traces in this name scope
    # (TensorFlow 2.21). Elsewhere a tensor would be copied at every step.
    vectorizing = "loop_body" in tf.get_current_name_scope()
    histories = [
        tf.zeros([last - first, *t.shape], t.dtype)
        if vectorizing
        else tf.TensorArray(t.dtype, last - first, element_shape=t.shape, clear_after_read=False)
        for t in tf.nest.flatten(carry)
        if keep
    ]

    def body(index, values, histories):
        kept = values if keep else []
        histories = [_write(history, index - first, v) for history, v in zip(histories, kept, strict=True)]
        after = step(constants, tf.nest.pack_sequence_as(carry, values), index)
        try:
            tf.nest.assert_same_structure(carry, after, check_types=False)
        except ValueError as error:
            raise ValueError(
                f"Inner steps run in a loop (more than {MOST_UNROLLED_STEPS}, or `rematerialize=True`), where "
                f"`LearningRule.step` must return a state structured as the one that `init` returns. {error}"
            ) from error
        return index + 1, tf.nest.flatten(after), histories

    _, values, histories = tf.while_loop(
        lambda index, *_: index < last,
        body,
        (tf.constant(first), tf.nest.flatten(carry), histories),
        parallel_iterations=1,
        maximum_iterations=last - first,  # XLA wants to know
    )
    return tf.nest.pack_sequence_as(carry, values), histories


def _differentiable_loop(step, constants, carry, first, last):
    flat = tf.nest.flatten(constants)
    sought = _of_floats(flat)

    @tf.custom_gradient
    def run(*inputs):
        # What the loop forward computes is not for a tape to keep.
        inputs = [tf.stop_gradient(t) for t in inputs]
        fixed = tf.nest.pack_sequence_as(constants, replace(flat, sought, inputs[: len(sought)]))
        start = tf.nest.pack_sequence_as(carry, inputs[len(sought) :])
        after, histories = _loop(step, fixed, start, first, last, keep=True)

        def backward(*cotangents, variables=()):
            gradients = _backward(step, fixed, carry, histories, cotangents, first, last)
            # Variables that a step reads of itself, of a layer that Keras does not track, say: no part of the model.
            return (gradients, [None] * len(variables)) if variables else gradients

        return tf.nest.flatten(after), backward

    return tf.nest.pack_sequence_as(carry, run(*(flat[i] for i in sought), *tf.nest.flatten(carry)))


def _backward(step, constants, carry, histories, cotangents, first, last):
    """Cotangents of the floats among the constants and of the carry before the first step, from those after the last;
    `None` for what no step reaches."""
    flat = tf.nest.flatten(constants)
    fixed = [flat[i] for i in _of_floats(flat)]
    moving = _of_floats(tf.nest.flatten(carry))
    # Dense: the queries may have read rows of an embedding.
    cotangents = [tf.convert_to_tensor(cotangents[i]) for i in moving]
    reached = set()

    def body(index, adjoints, totals):
        # The executor starts the ops of a loop as soon as their own inputs are there: without this, every step would be
        # made again before the backward pass comes to it, all in memory together.
        with tf.control_dependencies(adjoints):
            index = index - 1
        before = [h[index - first] if tf.is_tensor(h) else h.read(index - first) for h in histories]
        sources = [*fixed, *(before[i] for i in moving)]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            after = tf.nest.flatten(step(constants, tf.nest.pack_sequence_as(carry, before), index))
        gradients = tape.gradient([after[i] for i in moving], sources, output_gradients=adjoints)
        reached.update(i for i, g in enumerate(gradients) if g is not None)
        gradients = [
            tf.zeros_like(s) if g is None else tf.convert_to_tensor(g) for s, g in zip(sources, gradients, strict=True)
        ]
        of_fixed, adjoints = gradients[: len(fixed)], gradients[len(fixed) :]
        return index, adjoints, [total + g for total, g in zip(totals, of_fixed, strict=True)]

    _, adjoints, totals = tf.while_loop(
        lambda index, *_: index > first,
        body,
        (tf.constant(last), cotangents, [tf.zeros_like(t) for t in fixed]),
        parallel_iterations=1,
        maximum_iterations=last - first,
    )
    of_constants = [total if i in reached else None for i, total in enumerate(totals)]
    return of_constants + replace([None] * len(histories), moving, adjoints)


def _write(history, row, value):
    if tf.is_tensor(history):
        return tf.tensor_scatter_nd_update(history, tf.reshape(row, [1, 1]), value[tf.newaxis])
    return history.write(row, value)


def _of_floats(tensors):
    """Positions of what can have a gradient."""
    return [i for i, t in enumerate(tensors) if tf.is_tensor(t) and t.dtype.is_floating]
