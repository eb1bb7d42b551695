"""What leaves a `MetaModel`: SavedModels that adapt without keras_maml, and adapted Keras models.

The oracle is `MetaModel.call`. SavedModels are loaded by a process of their own, in which neither keras_maml nor Keras
can be imported.
"""

import gc
import pickle
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import export

SHAPE = (6, 6, 1)
WAYS = 3


def task(shape=SHAPE, support=6, query=9, seed=0):
    """One classification task without task axis: dict of arrays."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(WAYS), support)[:support].astype("int32")
    x = rng.normal(size=(support + query, *shape)).astype("float32")
    return {"support_x": x[:support], "support_y": labels, "query_x": x[support:]}


def one_batch(task):
    return tf.nest.map_structure(lambda array: tf.constant(array)[tf.newaxis], task)


def compiled(model, algorithm=None, loss=None):
    meta_model = keras_maml.MetaModel(model, algorithm or keras_maml.MAML(0.1, 2))
    meta_model.compile("sgd", loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return meta_model


def conv(normalisation=layers.BatchNormalization, dropout=0.0, shape=SHAPE):
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, 3, name="filters"),
            normalisation(name="norm"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(dropout),
            layers.Dense(WAYS, name="head"),
        ],
        name="net",
    )


def statistics(kind):
    return lambda **kwargs: keras_maml.layers.BatchNormalization(kind, **kwargs)


def with_moments(model):
    """Moving moments that are not those of an untrained layer."""
    rng = np.random.default_rng(1)
    for variable in model.non_trainable_variables:
        if "moving" in variable.name:
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    return model


def functional():
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, "tanh", name="low")(inputs)
    hidden = layers.Dense(8, "tanh", name="middle")(hidden)
    return keras.Model(inputs, layers.Dense(WAYS, name="head")(hidden))


def tokens():
    return keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(20, 4), layers.LSTM(4), layers.Dense(WAYS)]
    )


def nested():
    """Dict inputs and outputs, a shared layer, and two inner models whose weights have the same paths."""

    def part(name):
        sub = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh", name="dense")], name="sub")
        return keras.Sequential([keras.Input((4,)), sub], name=name)

    first, second = keras.Input((4,), name="a"), keras.Input((4,), name="b-c")
    shared = layers.Dense(4, name="shared.dense")
    left, right = part("left")(shared(first)), part("right")(shared(second))
    outputs = {"sum": layers.Dense(WAYS)(left + right), "value": layers.Dense(1)(left)}
    return keras.Model({"a": first, "b-c": second}, outputs)


def nested_task(seed=0):
    rng = np.random.default_rng(seed)

    def x(count):
        return {key: rng.normal(size=(count, 4)).astype("float32") for key in ("a", "b-c")}

    y = {"sum": (np.arange(6) % WAYS).astype("int32"), "value": rng.normal(size=(6, 1)).astype("float32")}
    return {"support_x": x(6), "support_y": y, "query_x": x(9)}


@keras.saving.register_keras_serializable("test_export")
class Subclassed(keras.Model):
    def __init__(self, units=4, statistics="support", **kwargs):
        super().__init__(**kwargs)
        self.units, self.statistics = units, statistics
        self.hidden = layers.Dense(units)
        stock = statistics is None
        self.norm = layers.BatchNormalization() if stock else keras_maml.layers.BatchNormalization(statistics)
        self.drop = layers.Dropout(0.5)
        self.head = layers.Dense(WAYS)

    def call(self, x, training=None):
        return self.head(self.drop(tf.nn.relu(self.norm(self.hidden(x), training=training)), training=training))

    def get_config(self):
        return {"units": self.units, "statistics": self.statistics, "name": self.name}


def text():
    words = layers.TextVectorization(output_sequence_length=3)
    words.adapt(np.array(["red green", "blue red", "green sky"]))
    return keras.Sequential(
        [keras.Input((), dtype="string"), words, layers.Embedding(8, 4), layers.Flatten(), layers.Dense(WAYS)]
    )


def text_task():
    support = np.array(["red", "blue", "green", "red blue", "blue sky", "sea"])
    return {"support_x": support, "support_y": task()["support_y"], "query_x": np.array(["sky", "blue", "green red"])}


def scaled():
    scale = layers.Normalization()
    scale.adapt(np.random.default_rng(4).normal(3.0, 2.0, (50, 4)))
    return keras.Sequential([keras.Input((4,)), scale, layers.Dense(WAYS)])


def meta_sgd():
    meta_model = compiled(functional(), keras_maml.MetaSGD(0.1))
    for rate in meta_model.rule.rates:
        rate.assign(np.linspace(-0.1, 0.3, int(np.prod(rate.shape))).reshape(rate.shape))
    return meta_model


def frozen():
    model = with_moments(conv())
    model.layers[0].trainable = False
    model.get_layer("norm").trainable = False
    return compiled(model)


def bfloat16():
    model = functional()
    for layer in model.layers:
        layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    return compiled(keras.models.clone_model(model))


def loaded(folder):
    meta_model = compiled(conv(statistics("support")))
    meta_model.save(folder / "meta_model.keras")
    return keras.saving.load_model(folder / "meta_model.keras")


IMAGES = (np.random.default_rng(2).integers(0, 256, (15, *SHAPE))).astype("uint8")
BYTES = {**task(), "support_x": IMAGES[:6], "query_x": IMAGES[6:]}
INTEGERS = np.random.default_rng(3).integers(0, 20, (15, 5)).astype("int32")

# name: (meta model, task); "any" in a name: adapted weights are right for queries of any number
CASES = {
    "stock batch normalisation": lambda _: (compiled(conv()), task()),
    "support statistics, any": lambda _: (compiled(conv(statistics("support"))), task()),
    "moving statistics, dropout, any": lambda _: (compiled(with_moments(conv(statistics("moving"), 0.5))), task()),
    "byte images": lambda _: (compiled(keras.Sequential([layers.Rescaling(1 / 255), *conv().layers])), BYTES),
    "tokens, any": lambda _: (
        compiled(tokens(), keras_maml.FOMAML(0.1, 2)),
        {**task(), "support_x": INTEGERS[:6], "query_x": INTEGERS[6:]},
    ),
    "text, any": lambda _: (compiled(text()), text_task()),
    "nested, any": lambda _: (
        compiled(nested(), loss={"sum": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "value": "mse"}),
        nested_task(),
    ),
    "ANIL, any": lambda _: (compiled(functional(), keras_maml.ANIL(0.5, 2)), task((4,))),
    "MetaSGD, any": lambda _: (meta_sgd(), task((4,))),
    "no step, any": lambda _: (compiled(functional(), keras_maml.MAML(0.1, 1, evaluation_steps=0)), task((4,))),
    "more steps, any": lambda _: (compiled(functional(), keras_maml.IMAML(0.1, 1, evaluation_steps=4)), task((4,))),
    "learned scaling, any": lambda _: (compiled(scaled()), task((4,))),
    "frozen layers, any": lambda _: (frozen(), task()),
    "mixed_bfloat16, any": lambda _: (bfloat16(), task((4,))),
    "subclassed, any": lambda _: (compiled(Subclassed()), task((4,))),
    "loaded, any": lambda folder: (loaded(folder), task()),
}

# Runs where Keras and keras_maml do not exist; then Keras alone is let in.
SERVER = """
import importlib.machinery, pickle, sys

class Missing:
    blocked = {"keras", "keras_maml"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:  # TensorFlow asks where Keras lies without importing it
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}")

sys.meta_path.insert(0, Missing())
import tensorflow as tf

folder = sys.argv[1]
requests = pickle.load(open(folder + "/requests.pickle", "rb"))
answers = {}
for name, request in requests.items():
    signatures = tf.saved_model.load(folder + "/" + request["path"]).signatures
    named = {k: tf.constant(v) for k, v in request["named"].items()}
    support = {k: v for k, v in named.items() if k.startswith("support")}
    query = {k: v for k, v in named.items() if k.startswith("query")}
    adapted = signatures["adapt"](**support)
    def predict(first, last):
        return signatures["predict"](**{k: v[first:last] for k, v in query.items()}, **adapted)
    count = len(next(iter(query.values())))
    singly = [predict(i, i + 1) for i in range(count)]
    few = {k: v[:3] for k, v in support.items()}
    answers[name] = {
        "call": {k: v.numpy() for k, v in signatures["serving_default"](**named).items()},
        "again": {k: v.numpy() for k, v in signatures["serving_default"](**named).items()},
        "fewer": {k: v.numpy() for k, v in signatures["serving_default"](**few, **query).items()},
        "whole": {k: v.numpy() for k, v in predict(0, count).items()},
        "singly": {k: tf.concat([p[k] for p in singly], 0).numpy() for k in singly[0]},
        "signatures": {
            k: {n: (s.shape.as_list(), s.dtype.name) for n, s in f.structured_input_signature[1].items()}
            for k, f in signatures.items()
        },
        "adapted": {k: (v.shape.as_list(), v.dtype.name) for k, v in adapted.items()},
    }
assert not {"keras", "keras_maml"} & set(sys.modules)

Missing.blocked = {"keras_maml"}
import keras
learner = keras.saving.load_model(folder + "/learner.keras")
answers["learner"] = learner.predict(requests["support statistics, any"]["named"]["query_x"], batch_size=2, verbose=0)
answers["learner_layers"] = [type(layer).__module__ for layer in learner.layers]
assert "keras_maml" not in sys.modules
pickle.dump(answers, open(folder + "/answers.pickle", "wb"))
"""


def named_inputs(task):
    """The arrays of a task under the names of the signatures."""
    named = {}
    for name, structure in task.items():
        for path, array in keras.tree.flatten_with_path(structure):
            named["_".join([name, *path]).replace("-", "_")] = array
    return named


def called(meta_model, task):
    predictions = meta_model(one_batch(task))
    if isinstance(predictions, dict):
        return {f"predictions_{key}": value[0].numpy() for key, value in predictions.items()}
    return {"predictions": predictions[0].numpy()}


def predicted(learner, query_x):
    """Predictions of a learner on all queries at once, and on one after another."""

    def outputs(first, last):
        predictions = learner(tf.nest.map_structure(lambda array: tf.constant(array[first:last]), query_x))
        if isinstance(predictions, dict):
            return {f"predictions_{key}": value.numpy() for key, value in predictions.items()}
        return {"predictions": predictions.numpy()}

    singly = [outputs(i, i + 1) for i in range(len(tf.nest.flatten(query_x)[0]))]
    return outputs(0, None), {key: np.concatenate([one[key] for one in singly]) for key in singly[0]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`(expected, answers)` of all cases: `call` here, and what another process gets from the files."""
    folder = tmp_path_factory.mktemp("served")
    requests, expected = {}, {}
    for number, (name, case) in enumerate(CASES.items()):
        meta_model, episode = case(folder)
        if not name.startswith("loaded"):
            expected[name] = called(meta_model, episode)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            meta_model.export(folder / str(number))
        if name.startswith("loaded"):
            assert not meta_model._specs.value  # exported before it has seen an episode
            expected[name] = called(meta_model, episode)
        fewer = {k: tf.nest.map_structure(lambda a: a[:3], v) if k != "query_x" else v for k, v in episode.items()}
        expected[name, "fewer"] = called(meta_model, fewer)
        requests[name] = {"path": str(number), "named": named_inputs(episode)}
        learner = meta_model.adapt(episode["support_x"], episode["support_y"])
        whole, singly = predicted(learner, episode["query_x"])
        expected[name, "learner"] = {"whole": whole, "singly": singly, "split": meta_model._halves is not None}
        if name.startswith("support"):
            learner.save(folder / "learner.keras")
    (folder / "requests.pickle").write_bytes(pickle.dumps(requests))
    done = subprocess.run([sys.executable, "-c", SERVER, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return expected, pickle.loads((folder / "answers.pickle").read_bytes())


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        value = np.asarray(value, "float32")
        np.testing.assert_allclose(np.asarray(actual[key], "float32"), value, tolerance, tolerance, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_served_without_keras_maml_equals_call(served, name):
    expected, answers = served
    # bfloat16 has 8 bits, and compiled graphs leave out roundings between ops: a few units in the last place.
    tolerance = 2**-6 if "bfloat16" in name else 1e-5
    assert_close(answers[name]["call"], expected[name], tolerance)
    assert_close(answers[name]["again"], answers[name]["call"], 0)  # nothing of a request stays
    assert_close(answers[name]["fewer"], expected[name, "fewer"], tolerance)
    assert_close(answers[name]["whole"], expected[name], tolerance)
    if name.endswith("any"):
        assert_close(answers[name]["singly"], expected[name], tolerance)


def test_adaptation_shows_in_what_is_served(served):
    # Else a file that never adapts would pass: fewer supports give other predictions, but where no step is made.
    expected, answers = served
    for name in CASES:
        key = next(iter(expected[name]))
        difference = np.abs(answers[name]["fewer"][key] - answers[name]["call"][key]).max()
        assert difference == 0 if name.startswith("no step") else difference > 1e-4, name


def test_signatures_of_one_model(served):
    signatures = served[1]["support statistics, any"]["signatures"]
    support = {"support_x": ([None, *SHAPE], "float32"), "support_y": ([None], "int32")}
    query = {"query_x": ([None, *SHAPE], "float32")}
    adapted = {
        "net_filters_kernel": ([3, 3, 1, 4], "float32"),
        "net_filters_bias": ([4], "float32"),
        "net_norm_gamma": ([4], "float32"),
        "net_norm_beta": ([4], "float32"),
        "net_norm_moving_mean": ([4], "float32"),
        "net_norm_moving_variance": ([4], "float32"),
        "net_head_kernel": ([64, WAYS], "float32"),
        "net_head_bias": ([WAYS], "float32"),
    }
    assert signatures["serving_default"] == {**support, **query}
    assert signatures["adapt"] == support
    assert served[1]["support statistics, any"]["adapted"] == adapted
    assert signatures["predict"] == {**query, **adapted}


def test_integers_stay_integers(served):
    for name, dtype in (("tokens, any", "int32"), ("byte images", "uint8"), ("text, any", "string")):
        signatures = served[1][name]["signatures"]
        assert {v[1] for k, v in signatures["serving_default"].items() if k != "support_y"} == {dtype}
        assert signatures["predict"]["query_x"][1] == dtype


def test_nested_inputs_and_repeated_paths_have_names_of_their_own(served):
    signatures = served[1]["nested, any"]["signatures"]
    assert set(signatures["adapt"]) == {"support_x_a", "support_x_b_c", "support_y_sum", "support_y_value"}
    names = set(served[1]["nested, any"]["adapted"])
    assert {"sub_dense_kernel", "sub_dense_kernel_1", "sub_dense_bias", "sub_dense_bias_1"} <= names
    assert {"shared_dense_kernel", "shared_dense_bias"} <= names
    assert len(names) == 10  # two of each: the shared, two inner and two output layers


def test_adapted_weights_are_in_full_precision(served):
    assert {dtype for _, dtype in served[1]["mixed_bfloat16, any"]["adapted"].values()} == {"float32"}
    assert served[0]["mixed_bfloat16, any"]["predictions"].dtype == "bfloat16"  # else it would not test what it says


def test_only_what_adapts_is_passed_on(served):
    assert set(served[1]["ANIL, any"]["adapted"]) == {"head_kernel", "head_bias"}
    assert set(served[1]["frozen layers, any"]["adapted"]) == {"net_head_kernel", "net_head_bias"}


def test_names_are_legal_and_unique():
    paths = ["dense/kernel", "dense_kernel", "block-1.a/kernel", "1st/kernel", "_own/kernel", "query/x", "dense/kernel"]
    assert export._unique(paths, taken=["query_x"]) == [
        "dense_kernel",
        "dense_kernel_1",
        "block_1_a_kernel",
        "weight_1st_kernel",
        "weight__own_kernel",
        "query_x_1",
        "dense_kernel_2",
    ]


def test_sizes_are_as_free_as_the_model_leaves_them(tmp_path):
    model = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(WAYS)]
    )
    meta_model = compiled(model)
    small, large = task(), task((8, 7, 1), support=12, query=1)
    meta_model(one_batch(small))
    meta_model.export(tmp_path / "model")
    signature = tf.saved_model.load(tmp_path / "model").signatures["serving_default"]
    for name in ("support_x", "query_x"):
        assert signature.structured_input_signature[1][name].shape.as_list() == [None, None, None, 1]
    answer = signature(**{k: tf.constant(v) for k, v in large.items()})["predictions"]
    np.testing.assert_allclose(answer, meta_model(one_batch(large))[0], rtol=1e-5, atol=1e-5)


def test_calls_after_fit_do_not_change_what_a_file_takes(tmp_path):
    meta_model = compiled(functional())
    episode = task((4,))
    meta_model.predict(one_batch(episode), verbose=0)
    meta_model.adapt(episode["support_x"], episode["support_y"].astype("int64"))
    meta_model.export(tmp_path / "model")
    signature = tf.saved_model.load(tmp_path / "model").signatures["adapt"]
    assert signature.structured_input_signature[1]["support_y"].dtype == tf.int32


def test_unknown_shapes_are_refused(tmp_path):
    called = Subclassed()
    called(np.ones((2, 4), "float32"))
    models = Subclassed(), called, keras.Sequential([layers.Dense(WAYS)])
    several_outputs = compiled(nested(), loss={"sum": "mse", "value": "mse"})
    for meta_model in (*map(compiled, models), several_outputs):
        with pytest.raises(ValueError, match="Call the MetaModel on one episode"):
            meta_model.export(tmp_path / "model")


def test_no_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no loss to adapt by"):
        keras_maml.MetaModel(functional()).export(tmp_path / "model")


# ------------------------------------------------------------------------------------------------------------- adapt


@pytest.mark.parametrize("name", CASES)
def test_learner_equals_call(served, name):
    expected, _ = served
    assert_close(expected[name, "learner"]["whole"], expected[name])
    if name.endswith("any"):
        tolerance = 2**-6 if "bfloat16" in name else 1e-5
        assert_close(expected[name, "learner"]["singly"], expected[name], tolerance)


def test_a_split_model_is_among_the_cases(served):
    assert [name for name in CASES if served[0][name, "learner"]["split"]] == ["ANIL, any", "frozen layers, any"]


def test_learner_with_support_statistics_needs_keras_only(served):
    expected, answers = served
    np.testing.assert_allclose(
        answers["learner"], expected["support statistics, any"]["predictions"], rtol=1e-5, atol=1e-5
    )
    assert all(module.startswith("keras.src") for module in answers["learner_layers"])


def test_learner_is_saved_and_fine_tuned_by_itself(tmp_path):
    for kind in keras_maml.layers.STATISTICS:
        meta_model = compiled(conv(statistics(kind)))
        episode = task()
        before = [v.numpy() for v in meta_model.variables]
        learner = meta_model.adapt(episode["support_x"], episode["support_y"])
        predictions = learner(episode["query_x"]).numpy()
        learner.save(tmp_path / "learner.keras")
        restored = keras.saving.load_model(tmp_path / "learner.keras")
        np.testing.assert_allclose(restored(episode["query_x"]), predictions, rtol=1e-5, atol=1e-5)
        restored.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        losses = restored.fit(episode["support_x"], episode["support_y"], epochs=3, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
        # Neither adaptation nor fine-tuning reaches the base model.
        for variable, value in zip(meta_model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)


def test_learner_of_a_subclassed_model_is_saved(tmp_path, recwarn):
    episode = task((4,))
    for kind in keras_maml.layers.STATISTICS:
        learner = compiled(Subclassed(statistics=kind)).adapt(episode["support_x"], episode["support_y"])
        learner.save(tmp_path / "learner.keras")
        restored = keras.saving.load_model(tmp_path / "learner.keras")
        np.testing.assert_allclose(restored(episode["query_x"]), learner(episode["query_x"]), rtol=1e-5, atol=1e-5)
    assert not [w for w in recwarn if "learner" in str(w.message)]


def test_learner_that_a_file_would_not_hold_warns():
    episode = task((4,))
    wrapped = keras.Sequential([keras.Input((4,)), Subclassed(statistics=None, name="inner")])
    for model in (Subclassed(statistics=None), wrapped):
        meta_model = compiled(model)
        with pytest.warns(UserWarning, match="BatchNormalization` in that constructor"):
            learner = meta_model.adapt(episode["support_x"], episode["support_y"])
        np.testing.assert_allclose(learner(episode["query_x"]), meta_model(one_batch(episode))[0], rtol=1e-5, atol=1e-5)
    nested = keras.Sequential([keras.Input(SHAPE), conv()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(nested).adapt(task()["support_x"], task()["support_y"])


def test_steps():
    episode, model = task((4,)), functional()
    few, many = (compiled(model, keras_maml.MAML(0.5, 1, evaluation_steps=steps)) for steps in (1, 5))
    learner = few.adapt(episode["support_x"], episode["support_y"], steps=5)
    np.testing.assert_allclose(learner(episode["query_x"]), many(one_batch(episode))[0], rtol=1e-5, atol=1e-5)
    unadapted = few.adapt(episode["support_x"], episode["support_y"], steps=0)
    np.testing.assert_array_equal(unadapted(episode["query_x"]), model(episode["query_x"]))
    for steps in (-1, 1.0, True):
        with pytest.raises(ValueError, match="`steps` must be an integer of at least 0"):
            few.adapt(episode["support_x"], episode["support_y"], steps=steps)


def test_support_weight():
    # Rows of weight 0 hold anything; the rest is as if they were not there. Among them a moment of normalisation.
    meta_model, episode = compiled(conv(statistics("support"))), task()
    padded = {
        "support_x": np.concatenate([episode["support_x"], np.full((2, *SHAPE), 1e3, "float32")]),
        "support_y": np.concatenate([episode["support_y"], np.zeros(2, "int32")]),
    }
    learner = meta_model.adapt(**padded, support_weight=np.array([1, 1, 1, 1, 1, 1, 0, 0], "float32"))
    np.testing.assert_allclose(learner(episode["query_x"]), meta_model(one_batch(episode))[0], rtol=1e-5, atol=1e-5)


def test_first_call_builds_the_model():
    meta_model, episode = compiled(Subclassed()), task((4,))
    learner = meta_model.adapt(episode["support_x"].tolist(), tuple(episode["support_y"].tolist()))  # lists are arrays
    np.testing.assert_allclose(learner(episode["query_x"]), meta_model(one_batch(episode))[0], rtol=1e-5, atol=1e-5)


def test_learner_shares_layers_as_the_model_does():
    episode = nested_task()
    meta_model, _ = CASES["nested, any"](None)
    learner = meta_model.adapt(episode["support_x"], episode["support_y"])
    assert len(learner.variables) == len(meta_model.model.variables) == 10
    assert not {id(v) for v in learner.variables} & {id(v) for v in meta_model.variables}


def trainability(model):
    return [v.trainable for v in model.variables], [layer.trainable for layer in model._flatten_layers()]


def freeze_layer(model):
    model.get_layer("filters").trainable = False


def freeze_variable(model):
    model.get_layer("norm").gamma.trainable = False
    model.get_layer("head").bias.trainable = False


def freeze_but_head(model):
    for layer in model.layers:
        layer.trainable = layer.name == "head"


@pytest.mark.parametrize("freeze", [freeze_layer, freeze_variable, freeze_but_head])
@pytest.mark.parametrize("make", [conv, lambda: conv(statistics("support"))], ids=["stock", "support"])
def test_frozen_parts(make, freeze):
    # Freezing moves variables among those of the model: values must still reach the right ones.
    model, episode = make(), task()
    freeze(model)
    meta_model = compiled(model, keras_maml.MAML(0.5, 2))
    learner = meta_model.adapt(episode["support_x"], episode["support_y"])
    np.testing.assert_allclose(learner(episode["query_x"]), meta_model(one_batch(episode))[0], rtol=1e-5, atol=1e-5)
    assert trainability(learner) == trainability(model)
    assert [v.path for v in learner.trainable_variables] == [v.path for v in model.trainable_variables]


def test_model_frozen_when_it_was_built():
    layer = layers.BatchNormalization(trainable=False)
    model = with_moments(keras.Sequential([keras.Input((4,)), layers.Dense(4), layer, layers.Dense(WAYS)]))
    meta_model, episode = compiled(model), task((4,))
    learner = meta_model.adapt(episode["support_x"], episode["support_y"])
    np.testing.assert_allclose(learner(episode["query_x"]), meta_model(one_batch(episode))[0], rtol=1e-5, atol=1e-5)
    assert trainability(learner) == trainability(model)
    assert not any(isinstance(layer, keras_maml.layers.BatchNormalization) for layer in learner.layers)


def test_nothing_is_left_of_learners():
    # Warm-up lets caches fill; then objects of TensorFlow and Keras are as many as before.
    meta_model, episode = compiled(conv(statistics("support"))), task()

    def count():
        gc.collect()
        kinds = (keras.Variable, keras.layers.Layer, keras.KerasTensor, tf.Tensor, tf.Variable, tf.Graph)
        # By `type`: to ask some of the objects of a long run for their `__class__` is an error.
        return sum(issubclass(type(thing), kinds) for thing in gc.get_objects())

    def adapt(times):
        for _ in range(times):
            meta_model.adapt(episode["support_x"], episode["support_y"])
        return count()

    assert adapt(2) >= adapt(3)


def test_divergence_is_refused():
    # Error e = w - 1 and w <- w - 2e30 e: the second step overflows to infinity, the third subtracts it from itself.
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, name="weight")])
    meta_model, ones = compiled(model, keras_maml.MAML(1e30, 3), "mse"), np.ones((2, 1), "float32")
    meta_model.adapt(ones, 3 * ones, steps=1)
    with pytest.raises(ValueError, match="1 of 1 weights are not finite.*weight/kernel'.*smaller inner learning rate"):
        meta_model.adapt(ones, 3 * ones)


class WithoutConfig(keras.Model):
    def __init__(self, function):
        super().__init__()
        self.function, self.head = function, layers.Dense(WAYS)

    def call(self, x):
        return self.head(self.function(x))


@keras.saving.register_keras_serializable("test_export")
class HalfConfig(Subclassed):
    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("test_export")
class LayersInConfig(WithoutConfig):
    def get_config(self):
        return {"function": self.function}


def test_model_that_cannot_be_cloned(tmp_path):
    episode = task((4,))
    for model, message in (
        (WithoutConfig(tf.negative), "cannot be cloned: .*non-serializable.* Give it `get_config`"),
        (HalfConfig(units=7), "'half_config' has other weights than the model.*get_config"),
        (LayersInConfig(layers.Dense(4)), "'layers_in_config' shares 2 weights with it.*serialize_keras_object"),
    ):
        meta_model = compiled(model)
        meta_model(one_batch(episode))
        before = model.get_weights()
        with pytest.raises(ValueError, match=message):
            meta_model.adapt(episode["support_x"], episode["support_y"])
        for value, kept in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(value, kept)
        # What the message proposes works.
        meta_model.export(tmp_path / model.name)
        signature = tf.saved_model.load(tmp_path / model.name).signatures["serving_default"]
        served = signature(**{k: tf.constant(v) for k, v in episode.items()})["predictions"]
        np.testing.assert_allclose(served, meta_model(one_batch(episode))[0], rtol=1e-5, atol=1e-5)


class OwnNormalization(layers.BatchNormalization):
    pass


def test_unknown_kind_of_batch_normalization_is_refused():
    meta_model, episode = compiled(conv(OwnNormalization)), task()
    with pytest.raises(ValueError, match="'norm' is a OwnNormalization.*keras_maml.layers.BatchNormalization"):
        meta_model.adapt(episode["support_x"], episode["support_y"])


def test_sizes_that_differ_between_episodes_are_free():
    # Of a subclassed model, which does not say what it takes.
    seen = {}
    for size in (3, 3, 4):
        x = {"a": tf.zeros((2, 5, size)), "b": tf.zeros((2, 5, size, 2), tf.int32)}
        seen = export.widen(seen, {"support_x": x, "support_y": tf.zeros((2, 5))})
        expected = None if size == 4 else 3
        assert seen["support_x"]["a"] == tf.TensorSpec((None, expected))
        assert seen["support_x"]["b"] == tf.TensorSpec((None, expected, 2), tf.int32)
        assert seen["support_y"] == tf.TensorSpec((None,))
