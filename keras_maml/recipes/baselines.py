"""What meta-learning has to beat: pretraining with fine-tuning, nearest centroids, joint training.

Each is trained as ordinary Keras models are and then judged as a `MetaModel` is, on the same episodes:

    body = keras_maml.recipes.networks.conv4()
    keras_maml.recipes.baselines.pretrain(body, images, labels, batches=2000)
    rival = keras_maml.recipes.baselines.fine_tuning(body, ways=5, learning_rate=0.1, steps=20)
    report = keras_maml.evaluate_episodes(rival, test, tasks=600, steps=(0, 20))
    print(meta_report.compare(report, steps=[(3, 20)]))

| baseline | training | test |
|---|---|---|
| `pretrain`, `fine_tuning(body, ways)` | all training classes, one classifier | a new output layer, gradient descent |
| `pretrain`, `nearest_centroid(body, ways)` | the same | the nearest mean of support features |
| `train_jointly`, `fine_tuning(model)` | the examples of all tasks, one model | gradient descent from there |
"""

import keras
import numpy as np
import tensorflow as tf

from keras_maml.algorithms import Algorithm
from keras_maml.arguments import check_whole
from keras_maml.autotuning import without_autotuning
from keras_maml.episodes.checks import names_of
from keras_maml.heads import PrototypeHead, ZeroHead
from keras_maml.learning_rules import SGD
from keras_maml.meta_gradients import FirstOrder
from keras_maml.meta_model import MetaModel


def classifier(body, classes):
    """A body with an output layer of logits: the body itself is trained.

    Args:
        body: a built `keras.Model`, `(examples, ...) -> (examples, features)`.
        classes: units of the output layer, at least 2.

    Returns:
        A `keras.Sequential`, not compiled.

    Raises:
        ValueError: if the body is none, or `classes` is out of range.
    """
    check_whole(2, classes=classes)
    shape = getattr(body, "output_shape", None) if isinstance(body, keras.Model) and body.built else None
    if not isinstance(shape, tuple) or len(shape) != 2 or len(body.inputs) != 1:
        inputs = f" and {len(body.inputs)} inputs" if shape else ""
        raise ValueError(
            "`body` must be a built `keras.Model` with one input and one output, (examples, features); end it in "
            f"`Flatten` or `GlobalAveragePooling2D`. Received: {body!r} with output shape {shape}{inputs}."
        )
    (given,), head = body.inputs, keras.layers.Dense(classes, name="head")
    return keras.Sequential([keras.Input(given.shape[1:], dtype=given.dtype), body, head])


def examples_of_classes(x, labels, batch_size=128, seed=None):
    """Shuffled batches of single examples for a `classifier`, without end.

    Args:
        x: `(N, ...)`, one array.
        labels: `(N,)`, integers of any value, or strings.
        batch_size: at least 1, and at most N.
        seed: 0 or more, or `None` for another order each time.

    Returns:
        A `tf.data.Dataset` of `(x, class)`, `(batch_size, ...)` and `(batch_size,)` `int32`; classes are numbered in
        the order of their sorted labels.

    Raises:
        ValueError: if an argument is out of range, or labels do not fit x.
    """
    names, classes = np.unique(names_of(labels), return_inverse=True)
    check_whole(1, batch_size=batch_size)
    if len(x) != len(classes) or batch_size > len(x) or len(names) < 2:
        raise ValueError(
            "`x` and `labels` must have as many rows, of 2 classes at least, and at least a batch of them. Received: "
            f"{len(x)} and {len(classes)} rows of {len(names)} classes, batch_size={batch_size}."
        )
    x, classes = tf.convert_to_tensor(x), tf.constant(classes, tf.int32)
    rows = tf.data.Dataset.range(len(classes)).shuffle(len(classes), seed).repeat().batch(batch_size, True)
    return without_autotuning(rows.map(lambda i: (tf.gather(x, i), tf.gather(classes, i))).prefetch(2))


def examples_of_tasks(episodes):
    """The examples of each batch of episodes in one batch, supports and queries: what joint training sees.

    Args:
        episodes: a `tf.data.Dataset` of `(x, y)` or `(x, y, sample_weight)`, as a `MetaModel` takes it.

    Returns:
        A `tf.data.Dataset` of `(x, y)`, `(T * (S + Q), ...)` each, with weights where the episodes have any.

    Raises:
        ValueError: if it is no dataset of episodes.
    """
    if not isinstance(episodes, tf.data.Dataset) or not isinstance(episodes.element_spec, tuple):
        raise ValueError(f"`episodes` must be a `tf.data.Dataset` of (x, y). Received: {type(episodes).__name__}.")
    return episodes.map(_merged)


def pretrain(body, x, labels, batches, batch_size=128, optimizer="adam", seed=None, verbose="auto"):
    """Trains a body, in place, to tell all training classes apart, with an output layer that is then thrown away.

    Args:
        body: see `classifier`.
        x: see `examples_of_classes`, and so `labels`, `batch_size` and `seed`.
        batches: number of steps, at least 1.
        optimizer: a Keras optimizer or its name.
        verbose: as for `fit`.

    Returns:
        The `keras.callbacks.History` of the training.

    Raises:
        ValueError: see `classifier` and `examples_of_classes`.
    """
    check_whole(1, batches=batches)
    examples = examples_of_classes(x, labels, batch_size, seed)
    model = classifier(body, len(np.unique(names_of(labels))))
    model.compile(optimizer, _cross_entropy(), metrics=["accuracy"])
    return model.fit(examples, steps_per_epoch=batches, shuffle=False, verbose=verbose)


def train_jointly(model, episodes, batches, loss, optimizer="adam", metrics=None, verbose="auto"):
    """Trains one model, in place, on the examples of all tasks, as if they were one.

    That is what the "pretrained" row of Finn et al. 2017 (arXiv:1703.03400, table 2) is on sine waves. Where classes
    are numbered anew in every task, nothing can be learned so: the loss stays at that of guessing.

    Args:
        model: a `keras.Model`.
        episodes: see `examples_of_tasks`.
        batches: number of steps, at least 1.
        loss: as in `compile`.
        optimizer: a Keras optimizer or its name.
        metrics: as in `compile`.
        verbose: as for `fit`.

    Returns:
        The `keras.callbacks.History` of the training.

    Raises:
        ValueError: see `examples_of_tasks`.
    """
    check_whole(1, batches=batches)
    model.compile(optimizer, loss, weighted_metrics=metrics)
    return model.fit(examples_of_tasks(episodes), steps_per_epoch=batches, shuffle=False, verbose=verbose)


def fine_tuning(model, learning_rate=0.01, steps=10, ways=None, layers=None, loss=None, metrics=None):
    """Gradient descent on the supports, from the weights of a model as they are.

    Args:
        model: a `keras.Model`; with `ways`, a body for a new output layer, see `classifier`.
        learning_rate: positive, for a mean loss.
        steps: number of steps, at least 1.
        ways: classes of a task, at least 2: the output layer starts from zeros. `None`: the model has one.
        layers: what is tuned, see `Algorithm`: default all; `keras_maml.selection.Head()`, only the output layer.
        loss: as in `compile`; default with `ways` the cross-entropy of logits.
        metrics: as in `compile`; default with `ways` the accuracy.

    Returns:
        A compiled `MetaModel` on the layers of `model`, for `keras_maml.evaluate_episodes`, `adapt` and `export`.

    Raises:
        ValueError: if arguments are out of range, or no loss is known.
    """
    start = None
    if ways is not None:
        model, start = classifier(model, ways), ZeroHead()
        loss, metrics = loss or _cross_entropy(), ["accuracy"] if metrics is None else metrics
    if loss is None:
        raise ValueError("A model that has its output layer already needs a `loss=` to be tuned by, such as 'mse'.")
    meta_model = MetaModel(model, Algorithm(SGD(learning_rate), FirstOrder(), steps, layers=layers, start=start))
    meta_model.compile(loss=loss, metrics=metrics)
    return meta_model


def nearest_centroid(body, ways, distance="euclidean", scale=None):
    """Each query gets the class whose mean of support features is nearest; nothing is tuned.

    Args:
        body: see `classifier`; `keras_maml.recipes.networks.pixels()` compares pixels.
        ways: classes of a task, at least 2.
        distance: `"euclidean"` or `"cosine"`, see `keras_maml.PrototypeHead`.
        scale: factor of the logits, which does not change the accuracy.

    Returns:
        A compiled `MetaModel` on the layers of `body`, to be judged after 0 steps.

    Raises:
        ValueError: if arguments are out of range.
    """
    algorithm = Algorithm(SGD(), FirstOrder(), steps=0, start=PrototypeHead(distance, scale))
    meta_model = MetaModel(classifier(body, ways), algorithm)
    meta_model.compile(loss=_cross_entropy(), metrics=["accuracy"])
    return meta_model


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _merged(x, y, sample_weight=None):
    def join(support, query):
        rows = tf.concat([support, tf.cast(query, support.dtype)], 1)
        return tf.reshape(rows, tf.concat([[-1], tf.shape(rows)[2:]], 0))

    merged = [
        tf.nest.map_structure(join, x["support_x"], x["query_x"]),
        tf.nest.map_structure(join, x["support_y"], y),
    ]
    weights = [x.get("support_weight"), x.get("query_weight") if sample_weight is None else sample_weight]
    if any(weight is not None for weight in weights):
        labels = tf.nest.flatten(x["support_y"])[0], tf.nest.flatten(y)[0]
        weights = [
            tf.ones(tf.shape(label)[:2]) if weight is None else tf.cast(weight, tf.float32)
            for weight, label in zip(weights, labels, strict=True)
        ]
        merged.append(join(*weights))
    return tuple(merged)
