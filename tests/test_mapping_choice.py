"""Which mapping is chosen, what overrides it, what is refused, and that the explanation says what runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from keras_maml import mapping_choice
from keras_maml.mapping_choice import choose
from keras_maml.task_mapping import Parallel, TaskMapping, Vectorized

layers = keras.layers


class Scale(layers.Layer):
    def call(self, inputs):
        return inputs * 2


class Idle(TaskMapping):
    pass


def sequential(shape, *members):
    return keras.Sequential([keras.Input(shape), *members])


def dense():
    return sequential((3,), layers.Dense(2, name="d"))


IMAGE, SERIES = (6, 6, 2), (6, 2)
CHOICES = {
    "dense": ([layers.Dense(2)], (3,), Vectorized, "no layer that convolves, recurs or attends, 8 weights"),
    "normalised": ([layers.LayerNormalization(), layers.Dense(2)], (3,), Vectorized, "no layer that convolves"),
    "convolution": ([layers.Conv2D(2, 3, name="c"), layers.Flatten()], IMAGE, Parallel, "layer 'c' convolves"),
    "depthwise": ([layers.DepthwiseConv2D(3, name="c")], IMAGE, Parallel, "layer 'c' convolves"),
    "separable": ([layers.SeparableConv2D(2, 3, name="c")], IMAGE, Parallel, "layer 'c' convolves"),
    "transposed": ([layers.Conv1DTranspose(2, 3, name="c")], SERIES, Parallel, "layer 'c' convolves"),
    "max-pooling": ([layers.MaxPooling1D(name="p"), layers.Dense(2)], SERIES, Parallel, "layer 'p' convolves, pools"),
    "recurrence": ([layers.LSTM(2, name="r")], SERIES, Parallel, "layer 'r' convolves, pools or recurs"),
    "both ways": ([layers.Bidirectional(layers.GRU(2, name="r"))], SERIES, Parallel, "convolves, pools or recurs"),
    "many weights": ([layers.Dense(1100), layers.Dense(1100)], (3,), Parallel, "1,215,500 weights"),
    "own layers": ([Scale(), layers.Dense(2)], (3,), Parallel, "layers of its own"),
    "nested": ([keras.Sequential([layers.Conv1D(2, 3, name="c")])], SERIES, Parallel, "layer 'c' convolves"),
    "branch": ([layers.SpectralNormalization(layers.Dense(2), name="s")], (3,), Parallel, "branch in layer 's'"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice(name):
    members, shape, mapping, reason = CHOICES[name]
    base = sequential(shape, *members)
    chosen, why = choose(base, base.trainable_variables)
    assert type(chosen) is mapping and reason in why
    explanation = keras_maml.MetaModel(base).explain_task_mapping()
    assert explanation.startswith(f"{mapping.__name__}: ") and reason in explanation


def bag_of_words(vocabulary, attends=False):
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(vocabulary, 64)(inputs)
    if attends:
        x = layers.MultiHeadAttention(2, 8, name="a")(x, x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def test_chunks_by_gradients():
    # 8 MiB are 2,097,152 float32 weights.
    base = sequential((1023,), layers.Dense(1))  # 1,024 weights
    most = mapping_choice.STACKED_BYTES // 4
    assert f"up to {most // 1024:,} tasks at once" in keras_maml.MetaModel(base).explain_task_mapping()
    # Learned rates have gradients too, and so have embeddings: dense ones.
    learned = keras_maml.MetaModel(base, keras_maml.MetaSGD()).explain_task_mapping()
    assert "2,048 weights" in learned and f"up to {most // 2048:,} tasks at once" in learned
    vectorized = keras_maml.MetaModel(bag_of_words(8000), task_mapping="vectorized").explain_task_mapping()
    assert "up to 4 tasks at once, under XLA" in vectorized
    # One that says how many is left alone.
    assert "up to 7 tasks" in keras_maml.MetaModel(base, task_mapping=Vectorized(True, 7)).explain_task_mapping()


def test_large_embeddings_stay_out_of_a_stack():
    # 200 * 64 and 8,000 * 64 weights.
    assert keras_maml.MetaModel(bag_of_words(200)).explain_task_mapping().startswith("Vectorized: ")
    assert "Parallel: the gradient of embedding" in keras_maml.MetaModel(bag_of_words(8000)).explain_task_mapping()


def test_attention_runs_in_parallel():
    assert "Parallel: layer 'a' attends" in keras_maml.MetaModel(bag_of_words(200, True)).explain_task_mapping()


def explained(mapping, base, algorithm=None, **kwargs):
    meta_model = keras_maml.MetaModel(base, algorithm or keras_maml.MAML(0.1, 1), mapping)
    meta_model.compile("sgd", "mse", **kwargs)
    return meta_model.explain_task_mapping()


def pooled():
    return sequential((4, 2), layers.MaxPooling1D(name="p"), layers.Flatten(), layers.Dense(2))


def test_explanations(monkeypatch):
    monkeypatch.setattr(keras_maml.task_mapping, "available_cores", lambda: 2)
    asked = "chosen by `task_mapping`"
    assert explained("parallel", dense()) == f"Parallel: {asked}; 2 tasks at a time."
    assert explained(Parallel(3), dense()) == f"Parallel: {asked}; 3 tasks at a time."
    assert explained("unrolled", dense()) == f"UnrolledTasks: {asked}; a copy of the graph for each task."
    assert explained(Idle(), dense()) == f"Idle: {asked}; a mapping of your own in graph steps."
    fit = "up to 262,144 tasks at once"  # of 8 weights
    assert explained("vectorized", dense()) == f"Vectorized: {asked}; {fit}, under XLA."
    assert explained(Vectorized(False), dense()) == f"Vectorized: {asked}; {fit}, without XLA."
    # What overrides: eager steps, `jit_compile`, max-pooling to second order.
    assert explained("auto", dense(), run_eagerly=True) == "Parallel: steps are eager; one task at a time."
    assert explained("vectorized", dense(), run_eagerly=True) == f"Vectorized: {asked}; {fit}, without XLA."
    assert explained("parallel", dense(), jit_compile=True) == f"Parallel: {asked}; one task at a time, under XLA."
    assert explained(Vectorized(False), dense(), jit_compile=True) == f"Vectorized: {asked}; {fit}, under XLA."
    without = f"Vectorized: {asked}, `jit_compile=False`; {fit}, without XLA."
    assert explained("vectorized", dense(), jit_compile=False) == without
    rough = explained("vectorized", pooled())
    assert f"{asked}, XLA rounds the second derivatives of layer 'p'; up to" in rough and "without XLA" in rough
    assert explained("vectorized", pooled(), keras_maml.FOMAML(0.1, 1)).endswith("under XLA.")
    unbuilt = keras_maml.MetaModel(keras.Sequential([layers.Dense(2)]))
    assert unbuilt.explain_task_mapping() == "Not known yet: the model is built with the first episode."


def test_explanation_on_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [kind])
    assert "(measured on CPUs, not on a GPU)" in keras_maml.MetaModel(dense()).explain_task_mapping()


@pytest.mark.parametrize("kwargs", [{}, {"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}])
def test_the_explanation_is_of_what_runs(kwargs, monkeypatch):
    ran = []

    def spied(mapping):
        original = mapping.__call__

        def call(self, *arguments):
            ran.append((type(self), self.get_config()))
            return original(self, *arguments)

        monkeypatch.setattr(mapping, "__call__", call)

    spied(Parallel)
    spied(Vectorized)
    meta_model = keras_maml.MetaModel(dense(), keras_maml.MAML(0.1, 1))
    meta_model.compile("sgd", "mse", **kwargs)
    x = {"support_x": np.ones((2, 2, 3)), "support_y": np.ones((2, 2, 2)), "query_x": np.ones((2, 2, 3))}
    meta_model.train_on_batch(x, np.ones((2, 2, 2)))
    ((kind, config),) = ran
    explanation = meta_model.explain_task_mapping()
    assert explanation.startswith(f"{kind.__name__}: ")
    if kind is Vectorized:
        assert f"up to {config['tasks_at_once']:,} tasks" in explanation
        assert explanation.endswith("under XLA." if config["jit_compile"] else "without XLA.")


UNFIT = {
    "LSTM": lambda **kwargs: layers.LSTM(2, name="r", **kwargs),
    "GRU": lambda **kwargs: layers.GRU(2, name="r", **kwargs),
    "RNN": lambda **kwargs: layers.RNN(layers.SimpleRNNCell(2), name="r", **kwargs),
    "both ways": lambda **kwargs: layers.Bidirectional(layers.SimpleRNN(2, name="r", **kwargs)),
    "ConvLSTM": lambda **kwargs: layers.ConvLSTM1D(2, 2, name="r", **kwargs),
}


@pytest.mark.parametrize("name", UNFIT)
def test_loops_over_time_are_not_vectorised(name):
    shape = (3, 4, 2) if name == "ConvLSTM" else (3, 2)
    base = sequential(shape, UNFIT[name]())
    for mapping in ("vectorized", Vectorized(False)):
        with pytest.raises(ValueError, match="cannot vectorise the gradient of the loop.* in layer '.*r'.*'parallel'"):
            keras_maml.MetaModel(base, task_mapping=mapping)
    for mapping in ("auto", "parallel", "unrolled"):
        keras_maml.MetaModel(base, task_mapping=mapping)
    keras_maml.MetaModel(sequential(shape, UNFIT[name](unroll=True)), task_mapping="vectorized")


def test_branches_are_not_vectorised():
    base = sequential((3,), layers.SpectralNormalization(layers.Dense(2), name="s"))
    with pytest.raises(ValueError, match="the gradient of the branch in layer 's'"):
        keras_maml.MetaModel(base, task_mapping="vectorized")


def test_an_unbuilt_model_is_refused_with_its_first_episode():
    meta_model = keras_maml.MetaModel(keras.Sequential([layers.LSTM(2)]), keras_maml.MAML(0.1, 1), "vectorized")
    meta_model.compile("sgd", "mse")
    x = {"support_x": np.ones((1, 2, 3, 2)), "support_y": np.ones((1, 2, 2)), "query_x": np.ones((1, 2, 3, 2))}
    with pytest.raises(ValueError, match="cannot vectorise the gradient of the loop over time steps"):
        meta_model.fit(x, np.ones((1, 2, 2)), verbose=0)


def test_unrolled_recurrence_can_be_vectorised():
    base = sequential((3, 2), layers.GRU(2, unroll=True))
    generator = np.random.default_rng(0)
    x = {name: generator.normal(size=(2, 2, 3, 2)).astype("float32") for name in ("support_x", "query_x")}
    x["support_y"] = y = generator.normal(size=(2, 2, 2)).astype("float32")
    gradients = []
    for mapping in ("parallel", Vectorized(False)):
        meta_model = keras_maml.MetaModel(base, keras_maml.MAML(0.1, 1), mapping)
        meta_model.compile("sgd", "mse")
        gradients.append(tf.function(meta_model.meta_gradients, autograph=False)(x, y)[2])
    for actual, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
