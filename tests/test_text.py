import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import episodes

TEXTS = [f"{'red blue green'.split()[i % 3]} thing {i}" for i in range(30)]
LABELS = ["red blue green".split()[i % 3] for i in range(30)]


def lengths(texts):
    return np.array([[len(text), text.count(" ")] for text in texts])


class TestReadText:
    @pytest.mark.parametrize("kind", [list, np.array, lambda texts: np.array(texts, object), tf.constant])
    def test_texts_of_all_kinds(self, kind):
        x, labels = episodes.read_text(kind(TEXTS), LABELS, lengths)
        np.testing.assert_array_equal(x, lengths(TEXTS))
        assert labels.tolist() == LABELS

    def test_text_vectorization(self):
        vectorize = keras.layers.TextVectorization(output_sequence_length=4)
        vectorize.adapt(TEXTS)
        x, _ = episodes.read_text(TEXTS, LABELS, vectorize)
        assert x.shape == (30, 4) and (x[:, 3] == 0).all()
        words = np.array(vectorize.get_vocabulary())[x]
        assert [" ".join(row[:3]) for row in words] == TEXTS

    def test_every_text_is_read_once_in_chunks(self):
        seen = []
        texts = [str(i) for i in range(2500)]

        def vectorize(chunk):
            seen.append(len(chunk))
            return {"a": np.array([[int(text)] for text in chunk]), "b": np.zeros((len(chunk), 3))}

        x, _ = episodes.read_text(texts, np.arange(2500) % 5, vectorize)
        assert seen == [1024, 1024, 452]
        np.testing.assert_array_equal(x["a"][:, 0], np.arange(2500))
        assert x["b"].shape == (2500, 3)

    def test_a_function_may_return_lists(self):
        x, _ = episodes.read_text(TEXTS, LABELS, lambda texts: [[len(text)] for text in texts])
        assert x.shape == (30, 1)

    @pytest.mark.parametrize(
        "texts, vectorize, message",
        [
            ([*TEXTS[:29], None], lengths, "Received: None at position 29, a NoneType"),
            ([*TEXTS[:29], 1.5], lengths, "1.5 at position 29, a float"),
            ([[text] for text in TEXTS], lengths, r"shape \(30, 1\)"),
            (TEXTS[:29], lengths, "Received: 29, 30"),
            (TEXTS, keras.layers.TextVectorization(), "knows no word.*training"),
            (TEXTS, "words", "`vectorize` must be a keras.layers.TextVectorization"),
            (TEXTS, lambda texts: tf.strings.split(texts), "RaggedTensor.*output_sequence_length"),
            (TEXTS, lambda texts: [[0] * len(text) for text in texts], "rows of unequal shapes"),
            (TEXTS, lambda texts: lengths(texts)[1:], r"one row a text. Received: shape \(29, 2\) for the 30 texts"),
            (TEXTS, lambda texts: texts, "must hold numbers"),
            (TEXTS, lambda texts: lengths(texts) * np.nan, "NaN"),
        ],
    )
    def test_errors(self, texts, vectorize, message):
        with pytest.raises(ValueError, match=message):
            episodes.read_text(texts, LABELS, vectorize)

    def test_chunks_of_different_shapes(self):
        texts = ["a"] * 1024 + ["b c"] * 3
        with pytest.raises(ValueError, match=r"\(1,\) for the first texts, \(2,\) for those from 1024"):
            episodes.read_text(texts, [0] * 1027, lambda chunk: np.zeros((len(chunk), len(chunk[0].split()))))


def test_from_text_gives_the_episodes_of_its_numbers():
    sampling = dict(ways=3, shots=1, queries=2, tasks=4, seed=0)
    x, y = next(iter(episodes.from_text(TEXTS, LABELS, lengths, **sampling)))
    expected_x, expected_y = next(iter(episodes.from_arrays(lengths(TEXTS), LABELS, **sampling)))
    np.testing.assert_array_equal(x["query_x"], expected_x["query_x"])
    np.testing.assert_array_equal(y, expected_y)
    with pytest.raises(ValueError, match="`ways` must be"):  # before any text is read
        episodes.from_text(None, None, None, ways=1, shots=1, queries=1, tasks=1)
