"""What every start has: what it sets, what it reads, and the checks of the model."""

import math

import keras
import tensorflow as tf

from keras_maml.pure_model import PureModel
from keras_maml.selection import cut_below, find_head

# Of classes without supports, so that no query is taken for them. float16 ends at -65504.
LOWEST_BIAS, LOWEST_BIAS_OF_FLOAT16 = -1e9, -3e4


class Start(keras.layers.Layer):
    """Base class of starts. A new one implements `resets` and `__call__`.

    A Keras layer, so that a start may own weights (a learned scale, say), made in its constructor, which are
    meta-learned with those of the model.
    """

    vectorizes = True  # whether XLA runs it well as one op of many tasks
    constant = False  # whether it sets the same values in every task, whatever the other weights are

    def __init__(self, **kwargs):
        # Starts are made in the precision of the weights, whatever the global policy.
        super().__init__(**{"dtype": "float32", **kwargs})

    def resets(self, model):
        """The trainable variables of a built model that this start sets, a list.

        Raises:
            ValueError: if the model does not suit, with the reason and the remedy.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `resets`.")

    def body(self, model):
        """The part of a model whose outputs `Task.features` are: a `keras.Model` on its layers, or `None`."""
        return None

    def __call__(self, task, params):
        """The values that a task starts from.

        Args:
            task: the `Task`; its `support` is `(x, y, weight)`, `(S, ...)` each, weight `(S,)` or `None`, its
                `features(params)` what the `body` makes of the supports.
            params: list of tensors, values of the model's trainable variables, 0 for those that are reset.

        Returns:
            A list shaped as `params`, as `task.reset(params, values)` makes it.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `__call__`.")


class ComputedHead(Start):
    """Base class of starts that compute the weights of a `Dense` output layer from its inputs at the supports.

    A new one implements `compute`. A class without supports, as padded episodes have them, gets weights of 0 and the
    lowest bias: -1e9, or -3e4 where features are float16. No query is taken for it then; but a loss that gives every
    class a share, as `label_smoothing` does, is as large as that bias.
    """

    def resets(self, model):
        head = dense_head(model, type(self).__name__)
        return [head.kernel, head.bias]

    def body(self, model):
        return cut_below(model, find_head(model))

    def compute(self, features, y, weight):
        """The weights of the output layer.

        Args:
            features: `(S, features)`, in the precision of the weights; 0 in rows of weight 0.
            y: shares of the classes, `(S, ways)`, 0 in rows of weight 0.
            weight: `(S,)`, at least 0.

        Returns:
            `(kernel, bias)`, `(features, ways)` and `(ways,)`; what they hold for a class without supports is not used,
            but must be finite.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `compute`.")

    def __call__(self, task, params):
        kernel = params[task.learner.reset[0]]
        features = task.features(params)
        lowest = LOWEST_BIAS_OF_FLOAT16 if features.dtype == tf.float16 else LOWEST_BIAS
        features = tf.cast(features, kernel.dtype)
        _, y, weight = task.support
        y = shares(y, kernel.shape[-1], kernel.dtype)
        if weight is None:
            weight = tf.ones(tf.shape(features)[:1], kernel.dtype)
        else:
            # Not a product: a padded example may have any features, and 0 * inf is NaN.
            weight = tf.cast(weight, kernel.dtype)
            kept = weight[:, tf.newaxis] > 0
            features, y = tf.where(kept, features, 0), tf.where(kept, y, 0)
        kernel, bias = self.compute(features, y, weight)
        seen = tf.reduce_max(tf.abs(y), 0) > 0  # ridge regression may have any targets
        return task.reset(params, [tf.where(seen, kernel, 0), tf.where(seen, bias, lowest)])

    def log_weight(self, name, value):
        """A meta-learned weight, the logarithm of a positive number: steps of an optimizer are relative, and it stays
        positive."""

        def start(shape, dtype):
            return tf.constant(math.log(value), dtype, shape)  # Keras's `Constant` rounds to float32

        return self.add_weight(name=f"log_{name}", shape=(), initializer=start)

    def positive(self, weight, value, dtype):
        """The number that a `log_weight` stands for, or `value` where there is none."""
        return tf.constant(value, dtype) if weight is None else tf.exp(tf.cast(weight, dtype))


def started(start, model, adapting):
    """What a start does to a model.

    Args:
        start: a `Start`.
        model: a built model.
        adapting: its variables that adapt.

    Returns:
        `(variables, parts)`: the trainable variables that the start sets, and the arguments of `Learner` about it.

    Raises:
        ValueError: if the model does not suit the start, or if it would be the same after adaptation.
    """
    variables = start.resets(model)
    adapts = {id(v) for v in adapting}
    stuck = [v.path for v in variables if id(v) not in adapts]
    if start.constant and stuck:
        raise ValueError(
            f"`{type(start).__name__}` sets {stuck} to the same values in every task, and `layers=` does not let them "
            "adapt, so that they would never change. Let their layer adapt, or leave out `start=`."
        )
    positions = {id(v): i for i, v in enumerate(model.trainable_variables)}
    body = start.body(model)
    parts = {
        "start": start,
        "reset": tuple(positions[id(v)] for v in variables),
        "body": None if body is None else PureModel(body, model),
    }
    return variables, parts


def shares(y, ways, dtype):
    """How much of each support belongs to each class, `(S, ways)`.

    Args:
        y: class indices, `(S,)` or `(S, 1)`, or shares of the classes, `(S, ways)`.
        ways: number of classes.
        dtype: of the result.

    Raises:
        ValueError: for labels of another shape.
    """
    rank = y.shape.rank
    if rank == 2 and y.shape[1] == ways:
        return tf.cast(y, dtype)
    if rank == 1 or (rank == 2 and y.shape[1] == 1):
        return tf.one_hot(tf.reshape(tf.cast(y, tf.int32), [-1]), ways, dtype=dtype)
    raise ValueError(
        f"The labels of a task with {ways} classes must be class indices (supports,) or shares (supports, {ways}). "
        f"Received: `support_y` of shape {tuple(y.shape)} without the task axis."
    )


def dense_head(model, name):
    """The output layer of a classifier, a `Dense` whose weights can be computed from its inputs.

    Args:
        model: a built model.
        name: of the start, for messages.

    Raises:
        ValueError: if it is no such layer, or if the model cannot be cut below it.
    """
    head = find_head(model)
    reason = _unfit(model, head)
    if reason:
        raise ValueError(
            f"`{name}` computes the weights of the output layer from its inputs, (examples, features). Expected a "
            "Sequential or Functional model with one output that ends in a trainable `Dense` layer with a bias, at "
            "least 2 units, no activation but softmax and no regulariser of the bias, not inside a nested model. "
            "Received: model "
            f"'{model.name}', {reason}."
        )
    return head


def _unfit(model, head):
    """Why `dense_head` refuses a layer, or `None`."""
    if not isinstance(head, keras.layers.Dense):
        return f"whose last layer with trainable weights is '{head.name}', a {type(head).__name__}"
    if head.bias is None or len(head.trainable_variables) != 2 or head.units < 2:
        return f"whose layer '{head.name}' has {head.units} units, and trainable weights {_shapes(head)}"
    if head.bias_regularizer is not None:
        return f"whose layer '{head.name}' has a `bias_regularizer`, to which classes without supports are -1e9"
    if head.activation not in (keras.activations.linear, keras.activations.softmax):
        return f"whose layer '{head.name}' has activation '{getattr(head.activation, '__name__', head.activation)}'"
    try:
        rank = len(cut_below(model, head).output.shape)
    except ValueError as error:
        return str(error)
    return None if rank == 2 else f"whose layer '{head.name}' takes inputs of {rank} axes"


def _shapes(layer):
    return [tuple(v.shape) for v in layer.trainable_variables]
