"""`check` names every planted fault, and is silent on healthy models."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS = 3


def images(seed=0, ways=WAYS, tasks=2, shots=1, queries=3):
    """Classes of noisy patterns, 8 x 8 pixels."""
    numbers = np.random.default_rng(seed)
    patterns = np.repeat(numbers.normal(size=(12, 8, 8, 1)), 10, 0)
    x = (patterns + 0.3 * numbers.normal(size=patterns.shape)).astype("float32")
    return keras_maml.episodes.from_arrays(x, np.repeat(np.arange(12), 10), ways, shots, queries, tasks=tasks, seed=0)


def changed(dataset, change):
    """One batch as arrays, `change(x, y)` done to it in place."""
    x, y = next(iter(dataset))
    x, y = {name: value.numpy() for name, value in x.items()}, y.numpy()
    change(x, y)
    return x, y


def image_model(*middle, outputs=WAYS, **head):
    keras.utils.set_random_seed(0)
    first = [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="tanh")]
    return keras.Sequential([*first, *middle, layers.Flatten(), layers.Dense(outputs, **head)])


def made(model, algorithm=None, loss=LOGITS, **arguments):
    meta_model = keras_maml.MetaModel(model, algorithm or keras_maml.MAML(0.05, 2), **arguments)
    meta_model.compile("adam", loss, metrics=["accuracy"])
    return meta_model


class Unused(keras.Model):
    """Has a layer that its predictions do not depend on."""

    def __init__(self):
        super().__init__()
        self.flatten, self.used, self.unused = layers.Flatten(), layers.Dense(WAYS), layers.Dense(2, name="unused")

    def build(self, input_shape):
        self.used.build((None, 64))
        self.unused.build((None, 64))

    def call(self, x):
        return self.used(self.flatten(x))


@keras.saving.register_keras_serializable("tests")
class Stateless(layers.Layer):
    """Dropout that draws from Keras's global generator."""

    def call(self, x, training=None):
        return keras.random.dropout(x, 0.5) if training else x


@keras.saving.register_keras_serializable("tests")
class Cut(layers.Layer):
    """A square whose derivative is taken for a constant."""

    def call(self, x):
        return x * tf.stop_gradient(x) * 2.0 - tf.stop_gradient(x * x)


def rematerialised():
    with keras.RematScope(mode="full"):
        layer = layers.Dense(6, activation="tanh", name="again")
    return image_model(layers.Flatten(), layer)


def frozen():
    meta_model = made(image_model())
    meta_model.model.layers[0].trainable = False
    return meta_model


def no_trainable_layer():
    model = image_model()
    model.trainable = False
    return made(model)


def direction(y, predictions):
    """Cosine between the logits and the row of the right class in an identity matrix."""
    wanted = tf.one_hot(tf.cast(y, "int32"), WAYS, dtype=predictions.dtype)
    return -tf.reduce_sum(wanted * predictions, -1) / tf.norm(predictions, axis=-1)


def nan(x, y):
    x["support_x"][1, 0, 2, 2] = np.nan


def leak(x, y):
    x["query_x"][:, 0], y[:, 0] = x["support_x"][:, 1], x["support_y"][:, 1]


def out_of_range(x, y):
    y[0, 0] = WAYS


def single():
    pixels = (8, 8, 1)
    x = {"support_x": np.ones((2, 1, *pixels)), "query_x": np.zeros((2, 2, *pixels))}
    return {**x, "support_y": np.ones((2, 1, WAYS))}, np.zeros((2, 2, WAYS))


def line():
    """Two directions, one of which falls fast while the other grows slowly."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.layers[0].kernel.assign([[3.0], [0.1]])
    return made(model, keras_maml.MAML(0.5, 1, 9), "mse")


def line_episodes():
    # Mean squares of x w over two supports: curvatures 2 and 2.2^2, so that steps of 0.5 give factors 0 and -1.42; the
    # loss falls from 9 to 0.05, and after nine steps it is (2.2 * 0.1 * 1.42^9)^2 / 2 = 13.
    x = np.array([[[2**0.5, 0.0], [0.0, 2.2]]], "float32")
    y = np.zeros((1, 2, 1), "float32")
    return {"support_x": x, "support_y": y, "query_x": x + 1}, y


def huge(x, y):
    x["support_x"] *= 5e37
    x["query_x"] *= 5e37


def unsupported(x, y):
    x["support_y"][1] = [0, 1, 1]


def constant(y, predictions):
    """A loss with a gradient of 0."""
    return tf.reduce_sum(0.0 * predictions, -1) + 1.0


FAULTS = {
    "not-finite-loss": lambda: (
        made(keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(WAYS)])), changed(images(), huge),
    ),
    "classes-without-support": lambda: (made(image_model()), changed(images(), unsupported)),
    "no-gradient": lambda: (made(image_model(), loss=constant), images()),
    "evaluation-diverges": lambda: (line(), line_episodes()),
    "bilinear-resizing": lambda: (made(image_model(layers.UpSampling2D(interpolation="bilinear"))), images()),
    "rematerialised-layers": lambda: (made(rematerialised()), images()),
    "no-second-derivative": lambda: (made(image_model(layers.Activation("softsign"))), images()),
    "unused-weights": lambda: (made(Unused()), images()),
    "nothing-to-learn": lambda: (no_trainable_layer(), images()),
    "refused": lambda: (frozen(), images()),
    "leaked-queries": lambda: (made(image_model()), changed(images(), leak)),
    "labels-out-of-range": lambda: (made(image_model()), changed(images(), out_of_range)),
    "inner-loss-grows": lambda: (made(image_model(), keras_maml.MAML(20.0, 3)), images()),
    "logits-taken-for-probabilities": lambda: (
        made(image_model(), keras_maml.MAML(0.001, 1), "sparse_categorical_crossentropy"), images(),
    ),
    "loss-ignores-scale": lambda: (made(image_model(), keras_maml.MAML(0.001, 1), direction), images()),
    "probabilities-taken-for-logits": lambda: (made(image_model(activation="softmax")), images()),
    "untracked-randomness": lambda: (made(image_model(Stateless())), images()),
    "mismatched-ways": lambda: (made(image_model(outputs=5)), images()),
    "not-finite-data": lambda: (made(image_model()), changed(images(), nan)),
    "wrong-meta-gradient": lambda: (made(image_model(Cut())), images()),
    "evaluation-steps-far-beyond": lambda: (made(image_model(), keras_maml.MAML(0.01, 1, 20)), images()),
    "malformed-episodes": lambda: (made(image_model()), ({"support_x": np.ones((1, 2, 8, 8, 1))}, np.ones((1, 2)))),
    "moments-of-one-example": lambda: (
        made(image_model(layers.Flatten(), layers.Dense(4), layers.BatchNormalization()), loss="mse"),
        single(),
    ),
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_found(code):
    meta_model, data = FAULTS[code]()
    report = keras_maml.check(meta_model, data)
    assert code in report.codes, str(report)
    assert report.verdict in ("wrong", "doubtful")
    finding = report.findings[report.codes.index(code)]
    assert finding.message.endswith((".", "]")) or code in ("malformed-episodes", "refused")


def batch_of_waves():
    return keras_maml.datasets.sinusoid(shots=5, queries=5, tasks=4, seed=0)


def waves(algorithm=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), layers.Dense(16, "relu"), layers.Dense(16, "relu"), layers.Dense(1)])
    return made(model, algorithm or keras_maml.MAML(0.01, 1), "mse")


def waves_with(loss):
    meta_model = waves()
    meta_model.compile("adam", loss)
    return meta_model


def texts():
    numbers = np.random.default_rng(0)
    words = numbers.integers(1, 20, (60, 6)) + 20 * np.repeat(np.arange(6), 10)[:, None]
    labels = np.repeat(np.arange(6), 10)
    dataset = keras_maml.episodes.from_arrays(words.astype("int32"), labels, 3, 2, 3, tasks=2, seed=0)
    keras.utils.set_random_seed(0)
    first = [keras.Input((6,), dtype="int32"), layers.Embedding(140, 8, mask_zero=True), layers.LSTM(8)]
    model = keras.Sequential([*first, layers.Dropout(0.3), layers.Dense(3)])
    return made(model, keras_maml.MAML(0.1, 2)), dataset


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Makes a layer of its own, which takes the global precision."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.dense = units, layers.Dense(units, activation="relu")

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class WithoutConfig(keras.Model):
    """Cannot be made again from a config, as its constructor has an argument."""

    def __init__(self, width):
        super().__init__()
        self.hidden, self.out = layers.Dense(width, activation="relu"), layers.Dense(1)

    def call(self, x):
        return self.out(self.hidden(x))


def subclassed(policy="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        meta_model = made(WithoutConfig(40), keras_maml.MAML(0.01, 1), "mse")
        meta_model(next(iter(batch_of_waves()))[0])
    finally:
        keras.config.set_dtype_policy("float32")
    return meta_model, batch_of_waves()


def likelihood(y, predictions):
    """Of a Gaussian, without its constants: may be far below 0."""
    return predictions[..., 0] * 0 - 5 + tf.square(y[..., 0] - predictions[..., 0])


def binary(activation, from_logits):
    numbers = np.random.default_rng(0)
    x = {name: numbers.normal(size=(2, 8, 3)).astype("float32") for name in ("support_x", "query_x")}
    y = (x["query_x"][..., :1] > 0).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(8, "tanh"), layers.Dense(1, activation)])
    loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
    return made(model, keras_maml.MAML(0.01, 1), loss), ({**x, "support_y": (x["support_x"][..., :1] > 0) * 1.0}, y)


HEALTHY = {
    "a layer inside a layer": lambda: (made(image_model(layers.Flatten(), Block(6))), images()),
    "a loss below 0": lambda: (waves_with(likelihood), batch_of_waves()),
    "a head of zeros": lambda: (made(image_model(kernel_initializer="zeros")), images()),
    "binary, logits": lambda: binary(None, True),
    "binary, probabilities": lambda: binary("sigmoid", False),
    "ways that vary": lambda: (made(image_model(outputs=8)), images(ways=(2, 8), shots=2, tasks=2)),
    "waves": lambda: (waves(), batch_of_waves()),
    "images, batch normalisation, max-pooling": lambda: (
        made(image_model(layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D())), images()
    ),
    "padded episodes": lambda: (
        made(image_model(layers.Dropout(0.2))), images(ways=(2, WAYS), shots=(1, 2), tasks=4)
    ),
    "texts": texts,
    "probabilities": lambda: (
        made(image_model(activation="softmax"), loss=keras.losses.SparseCategoricalCrossentropy()), images()
    ),
    "learned rates": lambda: (waves(keras_maml.MetaSGD(0.01, 1)), batch_of_waves()),
    "first order": lambda: (waves(keras_maml.FOMAML(0.01, 2)), batch_of_waves()),
    "head only": lambda: (made(image_model(), keras_maml.ANIL(0.05, 2)), images()),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_it_is_silent_on_healthy_models(name):
    meta_model, data = HEALTHY[name]()
    before = [w.numpy() for w in meta_model.weights]
    report = keras_maml.check(meta_model, data, strict=True)
    assert report.findings == () and report.verdict == "fine", str(report)
    assert len(report.variables) == len(meta_model.trainable_variables)
    if name != "first order":
        assert "finite differences in float64" in report.facts["meta-gradient"], str(report)
    for value, weight in zip(before, meta_model.weights, strict=True):
        np.testing.assert_array_equal(value, weight)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_models_that_cannot_be_cast_raise_no_alarm(policy):
    meta_model, data = subclassed(policy)
    meta_model.fit(data, steps_per_epoch=50, verbose=0)
    report = keras_maml.check(meta_model, data, strict=True)
    assert "not in float64" in report.facts["meta-gradient"]


def test_no_random_state_is_touched():
    meta_model, data = HEALTHY["waves"]()
    random.seed(1)
    expected = random.random()
    random.seed(1)
    keras_maml.check(meta_model, data)
    assert random.random() == expected


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda x, y: {"sample_weight": np.zeros(y.shape, "float32")}, "bad-weights"),
        (lambda x, y: {"support_weight": np.zeros(x["support_y"].shape, "float32")}, "bad-weights"),
        (lambda x, y: {"sample_weight": np.full(y.shape, np.nan, "float32")}, "not-finite-data"),
    ],
)
def test_weights(change, code):
    x, y = changed(images(), lambda x, y: None)
    weights = change(x, y)
    x |= {name: weight for name, weight in weights.items() if name == "support_weight"}
    report = keras_maml.check(made(image_model()), (x, y, weights.get("sample_weight")))
    assert report.codes[0] == code and report.verdict == "wrong"


def test_padding_that_is_not_finite():
    x, y, weight = next(iter(images(ways=(2, WAYS), shots=(1, 3), tasks=8)))
    x = {name: value.numpy() for name, value in x.items()}
    x["support_x"][x["support_weight"] == 0] = np.nan
    assert "not-finite-data" in keras_maml.check(made(image_model()), (x, y, weight)).codes


def test_a_leak_is_seen_whatever_the_dtypes():
    x, y = changed(images(), leak)
    x["support_y"], x["query_x"] = x["support_y"].astype("int64"), x["query_x"].astype("float64")
    assert "leaked-queries" in keras_maml.check(made(image_model()), (x, y)).codes


@pytest.mark.parametrize(
    "activation, from_logits, code",
    [(None, False, "logits-taken-for-probabilities"), ("sigmoid", True, "probabilities-taken-for-logits")],
)
def test_binary_losses(activation, from_logits, code):
    assert code in keras_maml.check(*binary(activation, from_logits)).codes


def test_what_becomes_of_each_weight():
    report = keras_maml.check(*HEALTHY["head only"]())
    assert [v.adapts for v in report.variables] == [False, False, True, True]
    assert all(v.gradient > 0 for v in report.variables)
    biased = made(image_model(layers.BatchNormalization()))
    assert biased.model.layers[0].bias.path in [v.path for v in keras_maml.check(biased, images()).variables]


def test_a_program_can_read_it():
    meta_model, data = FAULTS["leaked-queries"]()
    found = keras_maml.check(meta_model, data).to_dict()
    assert found["verdict"] == "wrong"
    assert [finding["code"] for finding in found["findings"]] == ["leaked-queries"]
    assert found["findings"][0]["severity"] == "error"
    # A third of the queries of a class, one of nine in each of two tasks.
    assert "2 of 18 queries" in found["findings"][0]["message"]


def test_the_text_names_all():
    text = str(keras_maml.check(*FAULTS["mismatched-ways"]()))
    assert text.startswith("verdict: doubtful, 1 finding")
    for words in ("warning [mismatched-ways]", "never are the right answer", "conv2d", "task mapping", "query loss"):
        assert words in text.replace("\n    ", " "), text


@pytest.mark.parametrize("code", ["leaked-queries", "mismatched-ways"])
def test_strict_raises_errors_and_warnings(code):
    with pytest.raises(ValueError, match=code):
        keras_maml.check(*FAULTS[code](), strict=True)


def test_what_is_no_meta_model_is_refused():
    with pytest.raises(ValueError, match="`meta_model` must be a `MetaModel`"):
        keras_maml.check(image_model(), images())
    with pytest.raises(ValueError, match="compile"):
        keras_maml.check(keras_maml.MetaModel(image_model()), images())
