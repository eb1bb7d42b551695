"""Augmentation: turned classes as new classes, and Keras preprocessing layers on examples, classes or tasks."""

import dataclasses
import inspect
import random as python_random

import keras
import numpy as np
import tensorflow as tf

from keras_maml.episodes import draws as random
from keras_maml.episodes.arrays import blank
from keras_maml.episodes.checks import names_of
from keras_maml.episodes.pipeline import plan_of
from keras_maml.selection import seed_variables

PARTS = ("both", "support", "query")
SHARED = ("example", "class", "task")


def rotate_classes(images, labels, turns=(0, 1, 2, 3)):
    """New classes: every class in several orientations, each a class of its own.

    Whichever classes an episode draws, the orientation of each is independent of the others', and the same for all of
    its supports and queries. (One orientation for a whole task would add nothing: a task stays as hard as it was.)

        train = keras_maml.episodes.rotate_classes(*keras_maml.episodes.read_folder("characters/train", 28))

    Turn the classes of each split by themselves. To part turned classes would put one character into two splits, in
    different orientations, which no check can see.

    Args:
        images: `(N, height, width, channels)`; `height = width` unless only half turns are asked for.
        labels: `(N,)` integers or strings.
        turns: quarter turns against the clock, different ones out of 0, 1, 2, 3.

    Returns:
        `(images, labels)`: `(len(turns) * N, height, width, channels)`, and `int64` labels `class + C * turn`, with
        `class` the position of a label among the C sorted labels.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Santoro et al. 2016, "One-shot learning with memory-augmented neural networks", arXiv:1605.06065
    """
    images, labels = np.asarray(images), names_of(labels)
    if not set(turns) <= {0, 1, 2, 3} or len(set(turns)) != len(turns) or not len(turns):
        raise ValueError(f"`turns` must be different quarter turns out of 0, 1, 2, 3. Received: turns={turns!r}.")
    if images.ndim != 4 or len(images) != len(labels):
        raise ValueError(
            f"`images` must have shape ({len(labels)}, height, width, channels), one a label. Received: {images.shape}."
        )
    if images.shape[1] != images.shape[2] and {1, 3} & set(turns):
        raise ValueError(
            f"A quarter turn of {images.shape[1]} x {images.shape[2]} pixels has another shape. Use square images, or "
            "`turns=(0, 2)`."
        )
    names, position = np.unique(labels, return_inverse=True)
    return (
        np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in turns]),
        np.concatenate([position + len(names) * turn for turn in turns]).astype("int64"),
    )


def augment(dataset, layer, part="both", share="example"):
    """Episodes whose examples go through a Keras layer, with random numbers that belong to the episode.

    So augmented episodes repeat and resume as all others do, under parallel calls too. Several calls add up, each with
    random numbers of its own. Integers stay integers: what the layer returns is rounded and cut to their range; a layer
    that takes floats only (`RandomContrast`, `GaussianNoise`) needs images as floats. Padding stays zeros.

        train = keras_maml.episodes.augment(train, keras.layers.RandomFlip("horizontal"), share="task")
        train = keras_maml.episodes.augment(train, keras.layers.RandomTranslation(0.1, 0.1), part="support")

    Args:
        dataset: as a builder of episodes returns it.
        layer: a `keras.layers.Layer`, or model of layers, that takes a batch of `support_x` without the task axis, and
            whose only state are its seed generators: `RandomFlip`, `RandomRotation`, `Rescaling`, `Pipeline`, ...
        part: `"both"`, `"support"` or `"query"`.
        share: what goes through the layer by the same random numbers: `"example"`: every example by its own; `"class"`:
            the examples of a class, supports and queries (a random rotation of each class); `"task"`: all examples.

    Returns:
        A `tf.data.Dataset` of the changed episodes.

    Raises:
        ValueError: if an argument is out of range, or the layer has other state, draws from Python's global generator
            (`AugMix` does), does not take such examples, or changes only one part's shape.
    """
    plan = plan_of(dataset)
    if part not in PARTS or share not in SHARED:
        raise ValueError(f"Expected part in {PARTS} and share in {SHARED}. Received: {part=}, {share=}.")
    if not isinstance(layer, keras.layers.Layer):
        raise ValueError(f"`layer` must be a `keras.layers.Layer`. Received: {layer!r}.")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or not isinstance(spec[0], dict) or "query_x" not in spec[0]:
        raise ValueError(f"`dataset` must be of episodes (x, y) with x a dict. Received elements: {spec}.")
    transform = _Transform(layer, share, first=random.LAYERS + 4 * plan.augmentations)

    def draw(seed, index):
        return {"drawn": plan.draw(seed, index), "seeds": transform.seeds(seed, index)}

    def read(drawn):
        element = drawn["drawn"] if plan.read is None else plan.read(drawn["drawn"])
        x, *rest = element
        x = dict(x)
        for name, labels in (("support", x["support_y"]), ("query", rest[0])):
            if part in ("both", name):
                changed = transform(x[f"{name}_x"], labels, drawn["seeds"], name)
                x[f"{name}_x"] = blank(changed, x.get(f"{name}_weight"))
        _check_parts(x, layer)
        return (x, *rest)

    changes = {"draw": draw, "read": read, "augmentations": plan.augmentations + 1}
    return dataclasses.replace(plan, **changes).dataset()


class _Transform:
    """A layer as a pure function of examples and seeds."""

    def __init__(self, layer, share, first):
        self.layer, self.share, self.first = layer, share, first
        parameters = inspect.signature(layer.call).parameters
        self.keywords = {"training": True} if "training" in parameters else {}

    def seeds(self, seed, index):
        """`(T, 3)` `int32`: numbers that belong to each episode and this augmentation."""
        bits = tf.transpose(random.random_bits(seed, index, 2, self.first))
        return tf.reshape(tf.bitcast(bits, tf.int32), (-1, 4))[:, :3]

    def __call__(self, x, labels, seeds, part):
        """Examples `(T, n, ...)` of labels `(T, n)` through the layer."""
        specs = self._specs(x)
        if self.share == "example":
            keys = tf.concat([seeds, tf.fill((tf.shape(seeds)[0], 1), int(part == "query"))], 1)
            return tf.map_fn(lambda task: self._call(*task), (x, keys), fn_output_signature=specs)
        if self.share == "class" and not (labels.dtype.is_integer and labels.shape.rank == 2):
            raise ValueError(
                f'`share="class"` needs class labels (T, n). Received: {labels.dtype.name} labels of shape '
                f'{labels.shape}. Use `share="example"` or `share="task"`.'
            )
        label = tf.zeros(tf.shape(labels)[:2], tf.int32) if self.share == "task" else tf.cast(labels, tf.int32)
        keys = tf.concat([tf.tile(seeds[:, None], (1, tf.shape(label)[1], 1)), label[..., None]], -1)

        def one(example):
            x, key = example
            changed = self._call(tf.nest.map_structure(lambda leaf: leaf[None], x), key)
            return tf.nest.map_structure(lambda leaf: leaf[0], changed)

        flat = tf.nest.map_structure(lambda leaf: tf.reshape(leaf, (-1, *leaf.shape[2:])), x)
        one_spec = tf.nest.map_structure(lambda spec: tf.TensorSpec(spec.shape[1:], spec.dtype), specs)
        changed = tf.map_fn(one, (flat, tf.reshape(keys, (-1, 4))), fn_output_signature=one_spec)
        outer = tf.shape(label)
        return tf.nest.map_structure(
            lambda leaf, spec: tf.ensure_shape(
                tf.reshape(leaf, tf.concat([outer, tf.shape(leaf)[1:]], 0)), (None, *spec.shape)
            ),
            changed,
            specs,
        )

    def _call(self, x, key):
        # Keras draws by the pair of a generator's state, and adds to its second number after each draw. Here the state
        # of every generator is a value: a hash of the episode's numbers, so a call leaves nothing behind.
        pair = tf.random.experimental.stateless_fold_in(key[:2], key[2])
        pair = tf.random.experimental.stateless_fold_in(pair, key[3])
        state = []
        for i, variable in enumerate(self.layer.non_trainable_variables):
            own = tf.random.experimental.stateless_fold_in(pair, i)
            state.append(tf.cast(tf.bitcast(own, tf.uint32), variable.dtype))
        changed, _ = self.layer.stateless_call([], state, x, **self.keywords)
        return tf.nest.map_structure(lambda new, old: _as_before(tf.convert_to_tensor(new), old.dtype), changed, x)

    def _specs(self, x):
        """Specs `(n, ...)` of what the layer makes of the examples of a task; builds it."""
        example = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), x)
        with tf.init_scope():
            traced = self._traced(example)
        return tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), traced.structured_outputs)

    def _traced(self, example):
        state = python_random.getstate()
        try:
            if not self.layer.built:
                # Symbolic, as a call would draw from the layer's generators.
                self.layer(tf.nest.map_structure(lambda s: keras.KerasTensor(s.shape, s.dtype.name), example))
            self._check_state()
            traced = tf.function(self._call, autograph=False).get_concrete_function(
                example, tf.TensorSpec((4,), tf.int32)
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Layer '{self.layer.name}' does not take these examples: {error}. Received: {example}. Some "
                "layers take floats only (pass `x.astype('float32')`), and one array rather than several inputs."
            ) from error
        if state != python_random.getstate():
            raise ValueError(
                f"Layer '{self.layer.name}' draws from Python's global generator, once for all episodes, so that no "
                "seed could repeat it. Use a layer that draws by `keras.random` only."
            )
        return traced

    def _check_state(self):
        seeds = {id(v) for v in seed_variables(self.layer)}
        others = [v.path for v in self.layer.variables if id(v) not in seeds]
        if others:
            raise ValueError(
                f"An augmentation must be a function of an episode and random numbers; layer '{self.layer.name}' has "
                f"other variables: {others[:3]}. Put it into the model, or call it on the examples beforehand."
            )


def _as_before(tensor, dtype):
    if dtype.is_integer and tensor.dtype.is_floating:
        tensor = tf.round(tensor)
    return tf.saturate_cast(tensor, dtype)


def _check_parts(x, layer):
    for support, query in zip(tf.nest.flatten(x["support_x"]), tf.nest.flatten(x["query_x"]), strict=True):
        if not support.shape[2:].is_compatible_with(query.shape[2:]):
            raise ValueError(
                f"Layer '{layer.name}' makes supports of shape {support.shape[2:]} and leaves queries of shape "
                f"{query.shape[2:]}, or the reverse. Use `part=\"both\"`, or a layer that keeps the shape."
            )
