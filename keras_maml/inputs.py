"""What goes into a `MetaModel`: shapes are checked when a step is traced, values wherever they are concrete."""

import keras
import numpy as np
import tensorflow as tf

KEYS = ("support_x", "support_y", "query_x")
OPTIONAL = ("support_weight", "query_weight", "domain")


def check_shapes(x, y=None, sample_weight=None, model=None):
    """Refuses an episode batch whose keys, ranks or sizes do not fit together.

    Args:
        x: the dict of `MetaModel.call`.
        y: query labels, `(T, Q, ...)`, or `None`.
        sample_weight: `(T, Q)` or `None`.
        model: the base model, to compare its input shape if it has one.

    Raises:
        ValueError: saying what came, what was expected and how to fix it.
    """
    if not isinstance(x, dict) or not set(KEYS) <= set(x) <= {*KEYS, *OPTIONAL}:
        came = f"a dict with keys {sorted(map(str, x))}" if isinstance(x, dict) else f"a {type(x).__name__}"
        raise ValueError(
            f"x must be a dict with keys {list(KEYS)} and optionally {list(OPTIONAL)}. Received: {came}. "
            "Episode datasets of `keras_maml.episodes` have this form."
        )
    domain = x.get("domain")
    if domain is not None and (tf.nest.is_nested(domain) or len(domain.shape) != 1):
        raise ValueError(f"`domain` must be one tensor (tasks,). Received: {_shapes(domain)}.")
    x = {name: value for name, value in x.items() if name != "domain"}
    tasks = _agree("tasks (axis 0)", 0, {**x, "y": y, "sample_weight": sample_weight})
    context = tf.distribute.get_replica_context()
    # Of a last batch a replica may have no task.
    if tasks == 0 and (context is None or context.num_replicas_in_sync == 1):
        raise ValueError("The batch holds no task: axis 0 of every tensor has length 0.")
    supports = {k: x.get(k) for k in ("support_x", "support_y", "support_weight")}
    queries = {"query_x": x["query_x"], "y": y, "sample_weight": sample_weight, "query_weight": x.get("query_weight")}
    for what, group in (("supports", supports), ("queries", queries)):
        if _agree(f"{what} (axis 1)", 1, group) == 0:
            raise ValueError(f"The tasks have no {what}: axis 1 has length 0.")
    weights = {"sample_weight": sample_weight, **{name: x.get(name) for name in ("support_weight", "query_weight")}}
    for name, weight in weights.items():
        if weight is not None and (tf.nest.is_nested(weight) or len(weight.shape) != 2):
            raise ValueError(
                f"`{name}` must be one tensor (tasks, examples). Received: {_shapes(weight)}."
            )
    _agree_structures("support_x", x["support_x"], "query_x", x["query_x"])
    if y is not None:
        _agree_structures("support_y", x["support_y"], "y", y)
    _check_model_input(x["support_x"], model)


def unpack(data):
    """`(x, y, sample_weight)` of a batch; without a `sample_weight` the one that `x` may carry, `"query_weight"`."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return x, y, x.get("query_weight") if sample_weight is None and isinstance(x, dict) else sample_weight


def _agree(what, axis, group):
    lengths = {}
    for name, structure in group.items():
        for tensor in tf.nest.flatten(structure):
            if tensor is None:
                continue
            if len(tensor.shape) < 2:
                raise ValueError(
                    f"`{name}` needs a task axis and an example axis, (tasks, examples, ...). Received shape "
                    f"{tuple(tensor.shape)}."
                )
            if tensor.shape[axis] is not None:
                lengths.setdefault(int(tensor.shape[axis]), name)
    if len(lengths) > 1:
        described = ", ".join(f"{name} has {length}" for length, name in lengths.items())
        raise ValueError(f"The numbers of {what} differ: {described}.")
    return next(iter(lengths), None)


def _agree_structures(name, a, other, b):
    try:
        tf.nest.assert_same_structure(a, b)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` and `{other}` must be nested alike. Received: {_shapes(a)} and {_shapes(b)}."
        ) from error
    for u, v in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        if len(u.shape) != len(v.shape) or any(
            m is not None and n is not None and m != n
            for m, n in zip(u.shape[2:], v.shape[2:], strict=True)
        ):
            raise ValueError(
                f"The examples of `{name}` and `{other}` must have one shape. Received: {_shapes(a)} and {_shapes(b)}."
            )


def _shapes(structure):
    return tf.nest.map_structure(lambda t: tuple(getattr(t, "shape", ())), structure)


def _check_model_input(support_x, model):
    expected = getattr(model, "input_shape", None) if getattr(model, "built", False) else None
    if not isinstance(expected, tuple) or any(isinstance(d, tuple) for d in expected):
        return
    if tf.nest.is_nested(support_x):
        return
    came = tuple(support_x.shape[1:])
    if len(came) != len(expected) or any(
        m is not None and n is not None and m != n
        for m, n in zip(came[1:], expected[1:], strict=True)
    ):
        raise ValueError(
            f"Model '{model.name}' takes inputs (examples, {', '.join(map(str, expected[1:]))}), and `support_x` has "
            f"(tasks, {', '.join(map(str, came))}). It needs a task axis before the example axis, then the model's own "
            "axes."
        )


def output_shape(model, support_x, compute_dtype):
    """The shape of a model's predictions, nested as they are, `(None, ...)` each; builds a model that is not built.

    Args:
        model: the base model.
        support_x: `(T, S, ...)`, nested as the model takes it.
        compute_dtype: what floating point inputs are cast to.
    """
    if model.built and hasattr(model, "output_shape"):
        return model.output_shape

    def symbolic(tensor):
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        floating = keras.backend.is_float_dtype(dtype)
        return keras.KerasTensor((None, *tensor.shape[2:]), compute_dtype if floating else dtype)

    outputs = model(tf.nest.map_structure(symbolic, support_x))
    if isinstance(outputs, keras.KerasTensor):
        return tuple(outputs.shape)
    return [tuple(output.shape) for output in tf.nest.flatten(outputs)]


def values_of(variables, values=None):
    """Tensors of the values of variables, or of the values given for them."""
    values = [tf.convert_to_tensor(v) for v in (variables if values is None else values)]
    if len(values) != len(variables):
        raise ValueError(
            f"`variables` must hold a value for each of the {len(variables)} trainable variables. Received: "
            f"{len(values)} values."
        )
    return values


def check_values(named, limits, remedy=""):
    """Refuses NaN, infinities and labels that are fractions or out of range, in tensors or arrays whose values are at
    hand.

    Args:
        named: dict of names to nested structures; symbolic tensors and `None` pass.
        limits: dict of names to what labels must be below; `None` where they are no class indices.
        remedy: end of the message about labels out of range.

    Raises:
        ValueError: naming the tensor and the value.
    """
    for name, structure in named.items():
        for tensor in tf.nest.flatten(structure):
            if tensor is None or not (isinstance(tensor, np.ndarray) or hasattr(tensor, "numpy")):
                continue
            values = np.asarray(tensor)
            if np.issubdtype(values.dtype, np.floating):
                bad = values.size - np.count_nonzero(np.isfinite(values))
                if bad:
                    raise ValueError(
                        f"`{name}` has {bad} values of {values.size} that are NaN or infinite. A learner that adapts "
                        "to them would be NaN everywhere; clean the data first."
                    )
            if name.endswith("weight") and values.size:
                _check_weights(name, values)
            limit = limits.get(name)
            if limit is not None and values.size:
                fractions = values[values % 1 != 0]
                if fractions.size:
                    raise ValueError(
                        f"Labels must be whole numbers in [0, {limit}), as the loss takes them for class indices. "
                        f"Received: `{name}` with a label of {fractions[0]}. For shares of classes, "
                        f"(examples, {limit}), compile with `loss=keras.losses.CategoricalCrossentropy(...)`."
                    )
                low, high = values.min(), values.max()
                if low < 0 or high >= limit:
                    raise ValueError(
                        f"Labels must be in [0, {limit}), as the model has {limit} outputs. Received: `{name}` with "
                        f"labels from {low} to {high}. Number the classes of each episode from 0.{remedy}"
                    )


def _check_weights(name, values):
    if values.min() < 0:
        raise ValueError(f"`{name}` must not be negative. Received a weight of {values.min()}.")
    empty = np.flatnonzero(values.max(axis=-1) == 0)
    if empty.size:
        raise ValueError(
            f"All weights of task {empty[0]} in `{name}` are 0, so that its loss has no value. Expected at least one "
            "example with a positive weight in every task."
        )


def first_batch(arguments, name, steps_name):
    """The first batch of data that can be looked at without using it up.

    Args:
        arguments: dict of the arguments of `fit`, `evaluate` or `predict`.
        name: the one that holds the data.
        steps_name: the one that says how many batches to take.

    Returns:
        `(x, y, sample_weight)`, or `None` for generators and the like.

    Raises:
        ValueError: if the data never ends and nothing says how much to take.
    """
    data = arguments.get(name)
    batch = None
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY and arguments.get(steps_name) is None:
            raise ValueError(
                f"The dataset given as `{name}` never ends. Pass `{steps_name}=`, or make it with `batches=`."
            )
        batch = next(iter(data.take(1)), None)
    elif isinstance(data, keras.utils.PyDataset):
        batch = data[0] if data.num_batches else None
    elif name == "validation_data":
        batch = data
    elif isinstance(data, dict):
        batch = (data, arguments.get("y"), arguments.get("sample_weight"))
    if not isinstance(batch, (tuple, list, dict)):
        return None
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    if sample_weight is not None and tf.nest.is_nested(y) and isinstance(data, (dict, tuple, list)):
        raise ValueError(
            "Keras takes no `sample_weight` (tasks, queries) with arrays for several outputs. Pass "
            "`tf.data.Dataset.from_tensor_slices((x, y, sample_weight)).batch(tasks)`."
        )
    return x, y, sample_weight


def to_batch(value, dtype):
    """What belongs to one task as a batch of one.

    Args:
        value: nested structure of arrays or tensors without a task axis, or a list of numbers.
        dtype: what floats become.

    Returns:
        Tensors with a task axis of length 1.
    """

    def convert(leaf):
        tensor = tf.convert_to_tensor(leaf)
        return (tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor)[tf.newaxis]

    if not any(hasattr(leaf, "shape") for leaf in tf.nest.flatten(value)):
        value = tf.convert_to_tensor(value)  # a list of numbers is an array, not a structure
    return tf.nest.map_structure(convert, value)
