"""Episodes of labelled texts, turned into numbers once, ahead of time."""

import keras
import numpy as np
import tensorflow as tf

from keras_maml.episodes.arrays import check_sampling, from_arrays
from keras_maml.episodes.checks import check_examples, names_of

CHUNK = 1024


def from_text(texts, labels, vectorize, **sampling):
    """Episodes of labelled texts.

        vectorize = keras.layers.TextVectorization(output_sequence_length=24)
        vectorize.adapt(training_texts)
        train = keras_maml.episodes.from_text(training_texts, intents, vectorize, ways=5, shots=1, queries=15, tasks=16)

    Args:
        texts: see `read_text`, and so `labels` and `vectorize`.
        **sampling: the arguments of `keras_maml.episodes.from_arrays` from `ways` on.

    Returns:
        A `tf.data.Dataset`, see `from_arrays`. Raises what `from_arrays` and `read_text` do.
    """
    check_sampling(**sampling)
    return from_arrays(*read_text(texts, labels, vectorize), **sampling)


def read_text(texts, labels, vectorize):
    """Labelled texts as arrays of numbers.

    The texts go through `vectorize` once, 1,024 at a time, and never again: an episode then costs what an episode of
    any other array costs, and no string reaches the model.

    Args:
        texts: `(N,)` strings: a list, a numpy array or a string tensor.
        labels: `(N,)` integers or strings.
        vectorize: a `keras.layers.TextVectorization`, adapted on texts of training classes, or any function of a numpy
            array of strings `(n,)` that gives numbers `(n, ...)`, of one shape for all texts, or a structure of them.

    Returns:
        `(x, labels)`: `(N, ...)`, or a structure of such arrays, and `(N,)`.

    Raises:
        ValueError: if a text is no string, lengths differ, `vectorize` was not adapted, or its results are ragged, no
            numbers, not finite, or not one a text.
    """
    texts, labels = _strings(texts), names_of(labels)
    if len(texts) != len(labels) or not len(texts):
        raise ValueError(f"Expected one label a text, and one text at least. Received: {len(texts)}, {len(labels)}.")
    _check_adapted(vectorize)
    parts = [_numbers(vectorize, texts[i : i + CHUNK], i) for i in range(0, len(texts), CHUNK)]
    first = keras.tree.flatten(parts[0])
    for position, part in enumerate(parts):
        for one, other in zip(first, keras.tree.flatten(part), strict=True):
            if one.shape[1:] != other.shape[1:]:
                raise ValueError(
                    f"`vectorize` must give all texts one shape. Received: {one.shape[1:]} for the first texts, "
                    f"{other.shape[1:]} for those from {position * CHUNK}. Give TextVectorization an "
                    "`output_sequence_length`, or pad to a fixed length."
                )
    x = keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *parts)
    check_examples("vectorize(texts)", x, len(texts))
    return x, labels


def _strings(texts):
    texts = texts.numpy() if tf.is_tensor(texts) else texts
    texts = np.asarray(texts, object).reshape(-1) if np.ndim(texts) == 1 else np.asarray(texts, object)
    if texts.ndim != 1:
        raise ValueError(f"`texts` must be strings of shape (N,). Received: shape {texts.shape}.")
    texts = np.array([t.decode("utf-8") if isinstance(t, bytes) else t for t in texts], object)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(
            f"`texts` must be strings. Received: {texts[wrong]!r} at position {wrong}, a "
            f"{type(texts[wrong]).__name__}. Fill in or leave out what is missing."
        )
    return texts.astype(str)


def _check_adapted(vectorize):
    if not callable(vectorize):
        raise ValueError(
            f"`vectorize` must be a keras.layers.TextVectorization or a function of texts. Received: {vectorize!r}."
        )
    # Padding and "unknown" are in every vocabulary.
    if isinstance(vectorize, keras.layers.TextVectorization) and vectorize.vocabulary_size() <= 2:
        raise ValueError(
            "`vectorize` knows no word, so all texts would become alike. Call `vectorize.adapt(texts)` on the texts of "
            "training classes: with those of test classes, their words would leak."
        )


def _numbers(vectorize, texts, position):
    """What `vectorize` makes of some texts, as arrays `(n, ...)`."""
    result = vectorize(texts)

    def to_array(leaf):
        if isinstance(leaf, tf.RaggedTensor):
            raise ValueError(
                "`vectorize` must give all texts one shape. Received: a RaggedTensor. Give TextVectorization an "
                "`output_sequence_length` and no `ragged=True`."
            )
        leaf = keras.ops.convert_to_numpy(leaf) if tf.is_tensor(leaf) else np.asarray(leaf)
        if leaf.ndim == 0 or len(leaf) != len(texts):
            raise ValueError(
                f"`vectorize` must give one row a text. Received: shape {leaf.shape} for the {len(texts)} texts from "
                f"{position}."
            )
        return leaf

    if isinstance(result, list):  # of rows, as a function in Python may return them
        try:
            result = np.asarray(result)
        except ValueError:
            raise ValueError(
                f"`vectorize` must give all texts one shape. Received: rows of unequal shapes for the texts from "
                f"{position}. Pad to a fixed length."
            ) from None
    return keras.tree.map_structure(to_array, result)
