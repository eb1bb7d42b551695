"""Memory that a traced graph takes, without running it.

Its operations are gone through as TensorFlow's executor does: first ready, first run. Each allocates its
outputs and frees what it was the last to read.

| operation | memory |
|---|---|
| views (`VIEWS`) | share the buffer of their input |
| element-wise ones (`IN_PLACE`) | write into an input of the same size that nobody reads after them |
| lists (`TensorArray`) | as many elements as they have room for, or as a loop appends |
| loops | what they carry, and the peak of an iteration; of several if these do not wait for each other |
| calls | the peak of what they call |

The graph itself takes memory too, more than the tensors of a small model: see `BYTES_PER_OPERATION`. Not known are
what kernels take for themselves, and what allocators keep between buffers.

What is read here of graphs is private to TensorFlow (checked with 2.21): `FuncGraph._functions`, names of operations.
"""

import collections
import math

import numpy as np
import tensorflow as tf

# What a traced operation takes: Python's graph and TensorFlow's copies of it, before and after it is optimised.
# Measured where tensors are next to nothing (benchmarks/README.md): 21.9, 22.4 and 22.8 kB for strided and pooled
# convolutions and a Transformer from one to five inner steps, in TensorFlow 2.21.
BYTES_PER_OPERATION = 22_400
# The same with what XLA makes of it, its own graph and machine code: dense layers from one to ten inner steps.
BYTES_PER_COMPILED_OPERATION = 63_000
# A loop of a graph becomes Enter, Merge, Switch, NextIteration and Exit for each tensor that it carries or reads.
OPERATIONS_PER_LOOP_INPUT = 5

VIEWS = {
    *("Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient", "EnsureShape"),
    *("ReadVariableOp", "Snapshot", "TensorListSetItem", "TensorListPushBack", "TensorListGetItem"),
    *("TensorListPopBack", "TensorListResize"),
}
IN_PLACE = {
    *("Add", "AddV2", "AddN", "Sub", "Mul", "MulNoNan", "RealDiv", "DivNoNan", "Maximum", "Minimum", "Pow"),
    *("SquaredDifference", "BiasAdd", "Neg", "Exp", "Log", "Log1p", "Sqrt", "Rsqrt", "Square", "Reciprocal", "Sign"),
    *("Abs", "Floor", "Inv", "Relu", "Relu6", "Elu", "Selu", "LeakyRelu", "Softplus", "Softsign", "Tanh", "Sigmoid"),
    *("Erf", "ReluGrad", "Relu6Grad", "EluGrad", "SeluGrad", "LeakyReluGrad", "TanhGrad", "SigmoidGrad", "RsqrtGrad"),
    *("SqrtGrad", "SoftplusGrad", "ReciprocalGrad", "Select", "SelectV2", "Softmax", "LogSoftmax", "Cast"),
    *("TensorScatterUpdate", "FusedBatchNormV3"),
}


LOOPS = ("While", "StatelessWhile")
CALLING = ("PartitionedCall", "StatefulPartitionedCall")
CALLS = {
    **dict.fromkeys(LOOPS, ("cond", "body")),
    **dict.fromkeys(CALLING, ("f",)),
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
}


class _Buffer:
    """Bytes in memory, and how many reads they have still to wait for."""

    __slots__ = ("readers", "size")

    def __init__(self, size, readers):
        self.size = size
        self.readers = readers


def _size(tensor):
    """Bytes of a tensor; 0 for resources, lists and axes that are not known."""
    if tensor.dtype in (tf.resource, tf.variant, tf.string) or tensor.shape.rank is None:
        return 0
    return math.prod(d or 0 for d in tensor.shape) * tensor.dtype.size


class Simulation:
    """The buffers of a graph while it runs.

    Args:
        graph: a `FuncGraph`.
        owned: positions of inputs whose buffers belong to the run: what a loop carries.
        known: values of scalar inputs, by position.
        count: of outputs; a graph has more of them when a later function was made of it for a gradient.
    """

    def __init__(self, graph, owned=(), known=(), count=None):
        self.graph = graph
        self.outputs = graph.outputs[:count]
        self.values = {id(graph.inputs[i]): value for i, value in dict(known).items() if value is not None}
        self.live = self.peak = 0
        self.buffers = {}  # id of tensor -> buffer
        self.sizes = {}  # id of tensor -> bytes, for what calls return
        self.readers = collections.Counter()
        needed = self._needed()
        for op in needed:
            self.readers.update(id(t) for t in op.inputs)
        self.readers.update(id(t) for t in self.outputs)
        for i, tensor in enumerate(graph.inputs):
            self.buffers[id(tensor)] = _Buffer(0, math.inf)
            if i in owned:
                self.buffers[id(tensor)] = self._allocate(_size(tensor), self.readers[id(tensor)])
        self._run(needed)

    def _needed(self):
        """Operations that an output depends on: the others are pruned."""
        stack = [t.op for t in self.outputs] + list(self.graph.control_outputs)
        seen = set()
        while stack:
            op = stack.pop()
            if op not in seen:
                seen.add(op)
                stack.extend([*(t.op for t in op.inputs), *op.control_inputs])
        return [op for op in self.graph.get_operations() if op in seen]

    def _run(self, needed):
        waiting, next_ones, ready = {}, collections.defaultdict(list), collections.deque()
        for op in needed:
            before = {*(t.op for t in op.inputs), *op.control_inputs}
            waiting[op] = len(before)
            for other in before:
                next_ones[other].append(op)
            if not before:
                ready.append(op)
        while ready:
            op = ready.popleft()
            if op.type != "Placeholder":
                self._execute(op)
            for other in next_ones[op]:
                waiting[other] -= 1
                if not waiting[other]:
                    ready.append(other)

    def _allocate(self, size, readers):
        self.live += size
        self.peak = max(self.peak, self.live)
        return _Buffer(size, readers)

    def _release(self, tensor):
        buffer = self.buffers[id(tensor)]
        buffer.readers -= 1
        if not buffer.readers:
            self.live -= buffer.size

    def _execute(self, op):
        extra = self._inside(op)
        self.peak = max(self.peak, self.live + extra)
        for i, output in enumerate(op.outputs):
            readers = self.readers[id(output)]
            shared = self._shared(op, i, output)
            if shared is not None:
                shared.readers += readers
                self.buffers[id(output)] = shared
            else:
                size = self._size_of(op, i)
                self.buffers[id(output)] = self._allocate(size, readers)
                if not readers:
                    self.live -= size
        for tensor in op.inputs:
            self._release(tensor)

    def _shared(self, op, i, output):
        """The buffer of an input that an output is written into, or `None`."""
        if op.type in VIEWS:
            return self.buffers[id(op.inputs[min(i, len(op.inputs) - 1)])]
        if op.type in LOOPS:
            body = _function(op, "body")
            same = _source(body.outputs[i]) is body.inputs[i] or output.dtype == tf.variant and not self._pushed(op, i)
            return self.buffers[id(op.inputs[i])] if same else None
        if op.type == "StridedSlice" and output.shape == op.inputs[0].shape[1:]:  # one task of a batch
            return self.buffers[id(op.inputs[0])]
        if i == 0 and op.type in IN_PLACE:
            for tensor in op.inputs:
                buffer = self.buffers[id(tensor)]
                if buffer.readers == 1 and buffer.size == _size(output) > 0:
                    return buffer
        return None

    def _inside(self, op):
        """Peak of what an operation runs, above what is live."""
        if op.type in CALLING:
            return self._inside_call(op)
        if op.type in LOOPS:
            return self._inside_loop(op)
        return max((Simulation(graph).peak for graph in _called(op)), default=0)

    def _inside_call(self, op):
        known = {i: self._static(t) for i, t in enumerate(op.inputs) if t.dtype == tf.int32}
        inner = Simulation(_function(op, "f"), known=known, count=len(op.outputs))
        for output, result in zip(op.outputs, inner.outputs, strict=True):
            self.sizes[id(output)] = inner.buffers[id(result)].size
            if result.dtype == tf.int32:
                self.values[id(output)] = inner._static(result)
        return inner.peak

    def _inside_loop(self, op):
        body = _function(op, "body")
        fixed = [a is _source(b) for a, b in zip(body.inputs, body.outputs, strict=True)]
        carried = [i for i, same in enumerate(fixed) if not same]
        handed_on = sum(_size(body.inputs[i]) for i in carried)
        known = {i: self._static(t) for i, t in enumerate(op.inputs) if fixed[i] and t.dtype == tf.int32}
        iteration = Simulation(body, carried, known).peak - handed_on
        # The loop over tasks says by its lists how often it runs.
        lists = [_source(t).op for t in op.inputs if t.dtype == tf.variant]
        rooms = [self._static(t.inputs[1]) or 1 for t in lists if t.type == "TensorListReserve"]
        at_once = 1 if _waits(body, carried) else min([op.get_attr("parallel_iterations"), *rooms])
        given = [self.buffers[id(op.inputs[i])] for i in carried if op.inputs[i].dtype != tf.variant]
        given = sum(buffer.size for buffer in given if buffer.readers == 1)  # the first iteration overwrites them
        pushed = sum(self._pushed(op, i) for i in range(len(body.outputs)))
        self.values[id(op.outputs[0])] = self._static(op.inputs[1])  # the counter: TensorFlow's gradient counts down
        return handed_on + at_once * iteration + pushed - given

    def _static(self, tensor):
        """The value of a scalar, `None` if it is not known."""
        tensor = _source(tensor)
        if id(tensor) in self.values:
            return self.values[id(tensor)]
        if tensor.shape.rank != 0 or not tensor.dtype.is_integer:
            return None
        inputs = [tf.get_static_value(t) for t in tensor.op.inputs]
        if tensor.op.type == "Max" and inputs[0] is not None:  # of the lengths of sequences, in Keras
            return int(np.max(inputs[0]))
        if tensor.op.type == "StridedSlice" and inputs[0] is not None and inputs[1] is not None:  # of a shape
            return int(inputs[0][inputs[1][0]])
        value = tf.get_static_value(tensor)
        return None if value is None else int(value)

    def _pushed(self, op, i):
        """Bytes that a loop appends to a list of no given length, as TensorFlow's own gradient of a loop does; of one
        iteration if their number is not known."""
        source = _source(_function(op, "body").outputs[i]).op
        trips = self._static(op.inputs[1])
        return _size(source.inputs[1]) * max(trips or 1, 1) if source.type == "TensorListPushBack" else 0

    def _size_of(self, op, i):
        """Bytes of an output that gets a buffer of its own."""
        if id(op.outputs[i]) in self.sizes:
            return self.sizes[id(op.outputs[i])]
        if op.type == "TensorListReserve":
            shape, count = tf.get_static_value(op.inputs[0]), self._static(op.inputs[1])
            if shape is None or count is None or (shape < 0).any():
                return 0
            return count * math.prod(int(d) for d in shape) * op.get_attr("element_dtype").size
        if op.type in LOOPS and op.outputs[i].dtype == tf.variant:
            return self._pushed(op, i)
        return _size(op.outputs[i])


def _source(tensor):
    """What a tensor is the very same as."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _waits(body, carried):
    """Whether an iteration needs floats of the one before for more than to add to them."""
    reached = {id(body.inputs[i]) for i in carried if body.inputs[i].dtype.is_floating}
    for op in body.get_operations():
        if any(id(t) in reached for t in op.inputs):
            if op.type not in ("Add", "AddV2", "Identity"):
                return True
            reached.update(id(t) for t in op.outputs)
    return False


def _function(op, attribute):
    return _function_named(op, op.get_attr(attribute).name)


def _function_named(op, name):
    graph = op.graph
    while name not in graph._functions:  # of the graph that it was made in, or one around
        graph = graph.outer_graph
    return graph._functions[name].graph


def _called(op):
    """Graphs that an operation runs."""
    names = [op.get_attr(key).name for key in CALLS.get(op.type, ())]
    if op.type in ("Case", "StatelessCase"):
        names = [function.name for function in op.get_attr("branches")]
    return [_function_named(op, name) for name in names]


def graph_bytes(graph, compiled=False):
    """What a graph takes, with the graphs that it runs."""
    total = 0
    for op in graph.get_operations():
        count = 1 + (OPERATIONS_PER_LOOP_INPUT * len(op.inputs) if op.type in LOOPS and not compiled else 0)
        total += count * (BYTES_PER_COMPILED_OPERATION if compiled else BYTES_PER_OPERATION)
        called = _called(op)
        if called:
            under_xla = compiled or "_XlaMustCompile" in op.node_def.attr and op.get_attr("_XlaMustCompile")
            total += sum(graph_bytes(inner, under_xla) for inner in called)
    return total
