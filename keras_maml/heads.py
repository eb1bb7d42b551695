"""Where a task starts: weights that are not meta-learned, but set at the start of every task.

| start | the weights of the output layer before the first step |
|---|---|
| `ZeroHead` | 0 |
| `PrototypeHead` | from the mean of each class's support features |

`ZeroContext` sets the context of `layers.ContextParameters` to 0, and leaves the output layer alone.

What a start sets is not meta-learned: it gets no outer gradient, and the optimizer does not see it. It adapts from
there as `Algorithm(layers=...)` says. The output layer has as many units in every task: where an episode has fewer
classes, the others are classes without supports.
"""

import keras
import tensorflow as tf

from keras_maml.adaptation import PureModel
from keras_maml.roles import context_parameters
from keras_maml.selection import cut_below, find_head, flatten_layers


class Start(keras.layers.Layer):
    """Base class of starts. A new one implements `resets` and `__call__`.

    A Keras layer, so that a start may own weights (a learned scale, say), made in its constructor, which are
    meta-learned with those of the model.
    """

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


@keras.saving.register_keras_serializable("keras_maml")
class ZeroHead(Start):
    """The weights of the output layer, the last one that has any, are 0 before the first step.

    Which class of a task has which number is chance: a meta-learned output layer could only prefer some numbers.

    References:
        - Kao et al. 2022, "MAML is a noisy contrastive learner in classification", arXiv:2106.15367
    """

    constant = True

    def resets(self, model):
        return find_head(model).trainable_variables

    def __call__(self, task, params):
        return task.reset(params, [tf.zeros_like(params[i]) for i in task.learner.reset])


@keras.saving.register_keras_serializable("keras_maml")
class ZeroContext(ZeroHead):
    """The context of every `layers.ContextParameters` is 0 before the first step, and not meta-learned.

    What a learned start of the context would add, the weights that read it can learn as well.

    References:
        - Zintgraf et al. 2019, "Fast context adaptation via meta-learning", arXiv:1810.03642
    """

    def resets(self, model):
        return context_parameters.variables(model, flatten_layers(model))


@keras.saving.register_keras_serializable("keras_maml")
class PrototypeHead(Start):
    """The output layer starts from the means `mu_c` of the support features of each class c, its inputs.

    ```
    w_c = 2 scale mu_c,    b_c = -scale |mu_c|^2        # "euclidean": logits scale (|f|^2 - |f - mu_c|^2)
    w_c = scale nu_c,      b_c = 0                      # "cosine": logits scale |f| cos(f, nu_c)
    ```

    where `nu_c` is the mean of the features brought to length 1, itself brought to length 1. As `|f|^2` is the same
    for all classes, `Algorithm(..., steps=0, start=PrototypeHead())` is a prototypical network; with steps it is
    Proto-MAML. For logits of cosines alone put a `keras.layers.UnitNormalization` before the output layer.

    A class without supports has weights of 0 and the lowest bias: -1e9, or -3e4 where features are float16. The output
    layer must be a `Dense` of as many units as tasks have classes at most, in training and later: it is not resized.

    Args:
        distance: `"euclidean"` or `"cosine"`.
        scale: positive; default 1 for `"euclidean"`, 10 for `"cosine"`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Snell et al. 2017, "Prototypical networks for few-shot learning", arXiv:1703.05175
        - with steps: Triantafillou et al. 2020, "Meta-Dataset: a dataset of datasets for learning to learn from few
          examples", arXiv:1903.03096
        - `"cosine"`: Gidaris and Komodakis 2018, "Dynamic few-shot visual learning without forgetting",
          arXiv:1804.09458
    """

    def __init__(self, distance="euclidean", scale=None, **kwargs):
        super().__init__(**kwargs)
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"`distance` must be 'euclidean' or 'cosine'. Received: distance={distance!r}.")
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if scale is not None and not (number and 0 < scale < float("inf")):
            raise ValueError(f"`scale` must be a positive number, or None. Received: scale={scale!r}.")
        self.distance = distance
        self.scale = scale

    def resets(self, model):
        head = dense_head(model, type(self).__name__)
        return [head.kernel, head.bias]

    def body(self, model):
        return cut_below(model, find_head(model))

    def __call__(self, task, params):
        kernel = params[task.learner.reset[0]]
        features = task.features(params)
        lowest = -3e4 if features.dtype == tf.float16 else -1e9
        features = tf.cast(features, kernel.dtype)
        _, y, weight = task.support
        members = memberships(y, weight, kernel.shape[-1], kernel.dtype)
        if weight is not None:
            # Not a product: a padded example may have any features, and 0 * inf is NaN.
            features = tf.where(tf.cast(weight, kernel.dtype)[:, tf.newaxis] > 0, features, 0)
        cosine = self.distance == "cosine"
        scale = self.scale or (10.0 if cosine else 1.0)
        if cosine:
            features = tf.math.l2_normalize(features, -1)
        counts = tf.reduce_sum(members, 0)
        seen = counts > 0
        means = tf.matmul(members, features, transpose_a=True) / tf.where(seen, counts, 1)[:, tf.newaxis]
        if cosine:
            weights, biases = scale * tf.math.l2_normalize(means, -1), tf.zeros_like(counts)
        else:
            weights, biases = 2 * scale * means, -scale * tf.reduce_sum(tf.square(means), -1)
        return task.reset(params, [tf.transpose(weights), tf.where(seen, biases, lowest)])

    def get_config(self):
        return {**super().get_config(), "distance": self.distance, "scale": self.scale}


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
    if start.constant and not {id(v) for v in variables} & {id(v) for v in adapting}:
        raise ValueError(
            f"`{type(start).__name__}` sets {[v.path for v in variables]} to the same values in every task, and "
            "`layers=` lets none of them adapt, so that they would never change. Let their layer adapt, or leave out "
            "`start=`."
        )
    positions = {id(v): i for i, v in enumerate(model.trainable_variables)}
    body = start.body(model)
    parts = {
        "start": start,
        "reset": tuple(positions[id(v)] for v in variables),
        "body": None if body is None else PureModel(body, model),
    }
    return variables, parts


def memberships(y, weight, ways, dtype):
    """How much of each support counts for each class, `(S, ways)`.

    Args:
        y: class indices, `(S,)` or `(S, 1)`, or shares of the classes, `(S, ways)`.
        weight: `(S,)` or `None`.
        ways: number of classes.
        dtype: of the result.

    Raises:
        ValueError: for labels of another shape.
    """
    rank = y.shape.rank
    if rank == 2 and y.shape[1] == ways:
        members = tf.cast(y, dtype)
    elif rank == 1 or (rank == 2 and y.shape[1] == 1):
        members = tf.one_hot(tf.reshape(tf.cast(y, tf.int32), [-1]), ways, dtype=dtype)
    else:
        raise ValueError(
            f"The labels of a task with {ways} classes must be class indices (supports,) or shares (supports, {ways}). "
            f"Received: `support_y` of shape {tuple(y.shape)} without the task axis."
        )
    return members if weight is None else members * tf.cast(weight, dtype)[:, tf.newaxis]


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
            "least 2 units and no activation but softmax, not inside a nested model. Received: model "
            f"'{model.name}', {reason}."
        )
    return head


def _unfit(model, head):
    """Why `dense_head` refuses a layer, or `None`."""
    if not isinstance(head, keras.layers.Dense):
        return f"whose last layer with trainable weights is '{head.name}', a {type(head).__name__}"
    if head.bias is None or len(head.trainable_variables) != 2 or head.units < 2:
        return f"whose layer '{head.name}' has {head.units} units, and trainable weights {_shapes(head)}"
    if head.activation not in (keras.activations.linear, keras.activations.softmax):
        return f"whose layer '{head.name}' has activation '{getattr(head.activation, '__name__', head.activation)}'"
    try:
        rank = len(cut_below(model, head).output.shape)
    except ValueError as error:
        return str(error)
    return None if rank == 2 else f"whose layer '{head.name}' takes inputs of {rank} axes"


def _shapes(layer):
    return [tuple(v.shape) for v in layer.trainable_variables]
