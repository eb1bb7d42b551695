"""Starts: prototypes by hand, a prototypical network and Proto-MAML written out in NumPy and plain TensorFlow, and zero
heads in closed form."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import Algorithm, PrototypeHead, ZeroHead
from keras_maml.checking.finite_differences import compare
from keras_maml.heads import Start
from keras_maml.learning_rules import ALFA, SGD, LayerwiseSGD, LearnedSGD, Momentum, ProximalSGD
from keras_maml.meta_gradients import FirstOrder, Implicit, ParameterDifference, Unrolled
from keras_maml.task_mapping import Vectorized

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS, WIDTH = 3, 4


def network(*middle, ways=WAYS, **kwargs):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((2,)), layers.Dense(WIDTH, "tanh"), *middle, layers.Dense(ways, **kwargs)])


def algorithm(start, steps=0, rate=0.3, **kwargs):
    parts = {"rule": SGD(rate), "meta_gradient": Unrolled(), "steps": steps, "start": start}
    return Algorithm(**parts | kwargs)


def made(start, steps=0, *middle, model=None, **kwargs):
    mapping = kwargs.pop("task_mapping", "parallel")  # which compiles nothing
    meta_model = keras_maml.MetaModel(model or network(*middle), algorithm(start, steps, **kwargs), mapping)
    meta_model.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    return meta_model


def batch(tasks=2, seed=0, dtype="float32"):
    """Supports of all classes but the last one in the second task."""
    random = np.random.default_rng(seed)
    x = {name: random.normal(size=(tasks, n, 2)).astype(dtype) for name, n in (("support_x", 6), ("query_x", 5))}
    x["support_y"] = np.array([[0, 1, 2, 2, 1, 0], [1, 1, 0, 0, 1, 0]][:tasks])
    return x, np.array([[2, 0, 1, 1, 0], [0, 1, 1, 0, 0]][:tasks])


class TestPrototypes:
    """The features are the inputs: class 0 has (1, 0) and (3, 4), class 1 has (0, 5), class 2 nothing.

    Means: (2, 2) and (0, 5). Of length 1: (1, 0) and (0.6, 0.8), whose mean (0.8, 0.4) has the length sqrt(0.8).
    """

    x = np.array([[1.0, 0.0], [0.0, 5.0], [3.0, 4.0]], "float32")
    expected = {
        ("euclidean", None): ([[4, 0, 0], [4, 10, 0]], [-8, -25, -1e9]),
        ("euclidean", 0.5): ([[2, 0, 0], [2, 5, 0]], [-4, -12.5, -1e9]),
        ("cosine", None): ([[8 / np.sqrt(0.8), 0, 0], [4 / np.sqrt(0.8), 10, 0]], [0, 0, -1e9]),
        ("cosine", 2): ([[1.6 / np.sqrt(0.8), 0, 0], [0.8 / np.sqrt(0.8), 2, 0]], [0, 0, -1e9]),
    }

    def head(self, start, y, x=None, weight=None, loss=CROSS_ENTROPY):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
        meta_model = keras_maml.MetaModel(model, algorithm(start))
        meta_model.compile("adam", loss)
        learner = meta_model.adapt(self.x if x is None else x, y, support_weight=weight)
        return [v.numpy() for v in learner.trainable_variables]

    @pytest.mark.parametrize("distance, scale", expected)
    def test_by_hand(self, distance, scale):
        kernel, bias = self.head(PrototypeHead(distance, scale), np.array([0, 1, 0]))
        np.testing.assert_allclose(kernel, self.expected[distance, scale][0], rtol=1e-6)
        np.testing.assert_allclose(bias, self.expected[distance, scale][1], rtol=1e-6)

    @pytest.mark.parametrize("distance", ["euclidean", "cosine"])
    @pytest.mark.parametrize("how", ["column", "one-hot", "padded", "weighted"])
    def test_labels_and_weights(self, distance, how):
        y, kwargs = np.array([0, 1, 0]), {}
        if how == "column":
            y = y[:, np.newaxis]
        elif how == "one-hot":
            y, kwargs = np.eye(3)[y], {"loss": keras.losses.CategoricalCrossentropy(from_logits=True)}
        else:
            # Padding may hold anything, infinities in the features too: 1e30 squared is infinite in float32. Class 1
            # twice, with half the weight each, is class 1.
            more = [[1e30, 1e30]] if how == "padded" else [[0.0, 5.0]]
            weights = [1, 1, 1, 0] if how == "padded" else [1, 0.5, 1, 0.5]
            kwargs = {"x": np.concatenate([self.x, more]).astype("float32"), "weight": np.array(weights, "float32")}
            y = np.array([0, 1, 0, 2 if how == "padded" else 1])
        kernel, bias = self.head(PrototypeHead(distance), y, **kwargs)
        np.testing.assert_allclose(kernel, self.expected[distance, None][0], rtol=1e-6)
        np.testing.assert_allclose(bias, self.expected[distance, None][1], rtol=1e-6)

    def test_a_class_without_supports_has_the_lowest_logit(self):
        for distance, steps in (("euclidean", 0), ("euclidean", 1), ("cosine", 1)):
            _, predictions, gradients = made(PrototypeHead(distance), steps).meta_gradients(*batch())
            predictions = predictions.numpy()
            assert (predictions[1, :, 2] < predictions[1, :, :2].min() - 1e8).all()
            assert all(np.isfinite(g).all() for g in gradients)

    def test_its_bias_is_no_weight_to_alfa(self):
        # The rule looks at the mean of all weights of the bias, which -1e9 would drown.
        rules = ALFA(0.1, seed=0), SGD(0.1)
        (alfa, _, of_alfa), (sgd, _, _) = (
            made(PrototypeHead(), 1, rule=rule).meta_gradients(*batch()) for rule in rules
        )
        np.testing.assert_allclose(alfa, sgd, rtol=0.02)  # its net starts with factors of about 1
        assert max(np.abs(g).max() for g in of_alfa) < 10

    def test_in_float16(self):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = network()
        finally:
            keras.config.set_dtype_policy("float32")
        meta_model, exact = made(PrototypeHead(), 1, model=model), made(PrototypeHead(), 1)
        x, y = batch()
        loss, predictions, gradients = meta_model.meta_gradients(x, y)
        assert np.isfinite(predictions).all() and (predictions.numpy()[1, :, 2] < -1e4).all()
        for one, other in zip(gradients, exact.meta_gradients(x, y)[2], strict=True):
            np.testing.assert_allclose(one, other, rtol=0.02, atol=2e-3)

    def test_labels_of_another_shape(self):
        meta_model = made(PrototypeHead())
        x, _ = batch()
        x["support_y"] = np.zeros((2, 6, 2))
        with pytest.raises(ValueError, match=r"indices \(supports,\) or shares \(supports, 3\).*\(6, 2\)"):
            meta_model.predict(x, verbose=0)


def tensors(*structure):
    return tf.nest.map_structure(tf.constant, structure)


def prototypical_network(values, x, y, distance="euclidean", scale=1.0):
    """Negative distances, or scaled cosines times the length of the features, and the mean cross-entropy, in NumPy."""
    kernel, bias = values
    predictions, losses = [], []
    for t in range(len(y)):
        support, query = (np.tanh(x[name][t] @ kernel + bias) for name in ("support_x", "query_x"))
        rows = np.full((len(query), WAYS), -np.inf)
        for c in set(x["support_y"][t].tolist()):
            members = support[x["support_y"][t] == c]
            if distance == "euclidean":
                rows[:, c] = -scale * ((query - members.mean(0)) ** 2).sum(-1)
            else:
                mean = (members / np.linalg.norm(members, axis=-1, keepdims=True)).mean(0)
                rows[:, c] = scale * query @ (mean / np.linalg.norm(mean))
        predictions.append(rows)
        losses.append((np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(rows)), y[t]]).mean())
    return np.array(predictions), np.mean(losses)


def differences(objective, values, epsilon=1e-6):
    """Central differences in every coordinate."""
    gradients = [np.zeros_like(value) for value in values]
    for gradient, value in zip(gradients, values, strict=True):
        for index in np.ndindex(value.shape):
            kept = value[index]
            slopes = []
            for sign in (1, -1):
                value[index] = kept + sign * epsilon
                slopes.append(sign * objective(values))
            value[index] = kept
            gradient[index] = sum(slopes) / (2 * epsilon)
    return gradients


@pytest.mark.usefixtures("float64")
class TestPrototypicalNetwork:
    @pytest.mark.parametrize("distance, scale", [("euclidean", 1.0), ("euclidean", 0.3), ("cosine", 10.0)])
    def test_zero_steps(self, distance, scale):
        x, y = batch(dtype="float64")
        meta_model = made(PrototypeHead(distance, scale), 0)
        values = [v.numpy() for v in meta_model.model.trainable_variables[:2]]
        loss, predictions, gradients = meta_model.meta_gradients(x, y)
        expected, expected_loss = prototypical_network(values, x, y, distance, scale)
        seen = np.isfinite(expected)
        if distance == "euclidean":  # logits lack -|f|^2, the same for all classes
            features = np.tanh(x["query_x"] @ values[0] + values[1])
            predictions = predictions - scale * (features**2).sum(-1, keepdims=True)
        np.testing.assert_allclose(predictions.numpy()[seen], expected[seen], rtol=1e-12)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
        slopes = differences(lambda v: prototypical_network(v, x, y, distance, scale)[1], values)
        assert len(gradients) == len(slopes) == 2
        for gradient, slope in zip(gradients, slopes, strict=True):
            np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-9)

    def test_an_inner_rate_and_the_output_layer_play_no_part(self):
        x, y = batch(dtype="float64")
        meta_model = made(PrototypeHead(), 0)
        expected = meta_model.meta_gradients(x, y)[2]
        for variable in meta_model.model.layers[-1].trainable_variables:
            variable.assign(np.full(variable.shape, 17.0))
        for gradient, other in zip(meta_model.meta_gradients(x, y)[2], expected, strict=True):
            np.testing.assert_array_equal(gradient, other)


def proto_maml(values, x, y, steps, rate, adapts=(True,) * 4, first_order=False):
    """The mean query loss and the logits of Proto-MAML in plain TensorFlow, one task after another."""
    values = [tf.convert_to_tensor(v) for v in values]
    losses, logits = [], []
    for t in range(len(y)):

        def forward(params, inputs):
            return tf.tanh(inputs @ params[0] + params[1]) @ params[2] + params[3]

        def loss_of(params, inputs, labels, forward=forward):
            cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, forward(params, inputs))
            return tf.reduce_mean(cross_entropy)

        features = tf.tanh(x["support_x"][t] @ values[0] + values[1])
        means, biases = [tf.zeros(WIDTH, tf.float64)] * WAYS, [tf.constant(-1e9, tf.float64)] * WAYS
        for c in set(x["support_y"][t].tolist()):
            means[c] = tf.reduce_mean(tf.boolean_mask(features, x["support_y"][t] == c), 0)
            biases[c] = -tf.norm(means[c]) ** 2
        params = [*values, 2 * tf.transpose(tf.stack(means)), tf.stack(biases)]
        for _ in range(steps):
            with tf.GradientTape() as tape:
                tape.watch(params)
                support_loss = loss_of(params, x["support_x"][t], x["support_y"][t])
            gradients = tape.gradient(support_loss, params)
            if first_order:
                gradients = [tf.stop_gradient(g) for g in gradients]
            moved = zip(params, gradients, adapts, strict=True)
            params = [p - rate * g if adapting else p for p, g, adapting in moved]
        losses.append(loss_of(params, x["query_x"][t], y[t]))
        logits.append(forward(params, x["query_x"][t]))
    return tf.reduce_mean(losses), tf.stack(logits)


# What adapts: an argument of `Algorithm`, and the weights of the body and the head that it leaves free.
ADAPTING = {
    "all": (None, (True,) * 4),
    "head": ("head", (False, False, True, True)),
    "body": (keras_maml.exclude("head"), (True, True, False, False)),
}


@pytest.mark.usefixtures("float64")
class TestProtoMAML:
    @pytest.mark.parametrize("adapting", ADAPTING)
    def test_two_steps(self, adapting):
        chosen, adapts = ADAPTING[adapting]
        x, y = batch(dtype="float64")
        model = network(name="head")
        meta_model = made(PrototypeHead(), 2, model=model, layers=chosen)
        values = [v.numpy() for v in model.trainable_variables[:2]]
        expected_loss, expected = proto_maml(values, x, y, 2, 0.3, adapts)
        loss, predictions, gradients = meta_model.meta_gradients(*tensors(x, y))
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
        np.testing.assert_allclose(predictions, expected, rtol=1e-9)
        objective = tf.function(lambda *v: proto_maml(v, x, y, 2, 0.3, adapts)[0], autograph=False)
        slopes = differences(lambda v: objective(*map(tf.constant, v)).numpy(), values)
        for gradient, slope in zip(gradients, slopes, strict=True):
            np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-9)

    def test_first_order_goes_through_the_prototypes(self):
        x, y = batch(dtype="float64")
        meta_model = made(PrototypeHead(), 2, meta_gradient=FirstOrder())
        values = [tf.constant(v) for v in meta_model.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss, _ = proto_maml(values, x, y, 2, 0.3, first_order=True)
        for gradient, other in zip(meta_model.meta_gradients(x, y)[2], tape.gradient(loss, values), strict=True):
            np.testing.assert_allclose(gradient, other, rtol=1e-9, atol=1e-12)


NORMALIZATION = keras_maml.layers.BatchNormalization
BODIES = {
    "plain": (),
    "batch": (layers.BatchNormalization,),
    "support": (lambda: NORMALIZATION("support"),),
    "moving": (lambda: NORMALIZATION("moving"),),
    "dropout": (lambda: layers.Dropout(0.3, seed=1),),
    "normal": (layers.UnitNormalization,),
}


class TestFiniteDifferences:
    """Of the whole meta-objective, in float64, through everything else that a step may hold."""

    @pytest.mark.parametrize("body", BODIES)
    def test_bodies(self, body):
        found = compare(made(PrototypeHead(), 1, *(make() for make in BODIES[body])), *tensors(*batch()), None)
        assert found.precision == "float64", found.reason
        assert found.difference < 1e-6

    @pytest.mark.parametrize(
        "start, kwargs",
        [
            (PrototypeHead("cosine"), {"steps": 2}),
            (PrototypeHead(), {"steps": 2, "meta_gradient": Unrolled(rematerialize=True)}),  # in a loop
            (PrototypeHead(), {"steps": 2, "rule": LearnedSGD(0.1)}),
            (PrototypeHead(), {"steps": 2, "rule": LayerwiseSGD(0.1)}),
            (PrototypeHead(), {"steps": 2, "rule": Momentum(0.1)}),
            (ZeroHead(), {"steps": 2, "rule": LearnedSGD(0.1)}),
        ],
    )
    def test_parts(self, start, kwargs):
        found = compare(made(start, **kwargs), *tensors(*batch()), None)
        assert found.precision == "float64", found.reason
        assert found.difference < 1e-6


class TestZeroHead:
    """Prediction v w x, the head v at 0 in every task; one support x = 1 of y = 1, one query x = 2 of y = -1, squares.

    One step of rate a: v = 2 a w, and w stays, as its gradient has the factor v = 0. Query: prediction p = 4 a w^2,
    loss (p + 1)^2, meta-gradient 2 (p + 1) 8 a w, of which half is that of v.
    A second step: w' = w - 2 a (v w - 1) v.
    """

    w, rate = 0.7, 0.25

    def made(self, meta_gradient=None, steps=1, rule=None):
        model = keras.Sequential(
            [keras.Input((1,)), layers.Dense(1, use_bias=False), layers.Dense(1, use_bias=False, name="head")]
        )
        model.set_weights([np.array([[self.w]]), np.array([[123.0]])])
        parts = algorithm(ZeroHead(), steps, rule=rule or SGD(self.rate), meta_gradient=meta_gradient or Unrolled())
        meta_model = keras_maml.MetaModel(model, parts)
        meta_model.compile("sgd", "mse")
        return meta_model

    x = {"support_x": np.ones((1, 1, 1)), "support_y": np.ones((1, 1, 1)), "query_x": np.full((1, 1, 1), 2.0)}
    y = -np.ones((1, 1, 1))

    @pytest.mark.parametrize("meta_gradient, share", [(Unrolled(), 1), (FirstOrder(), 0.5)])
    def test_one_step(self, meta_gradient, share):
        prediction = 4 * self.rate * self.w**2
        loss, predictions, (gradient,) = self.made(meta_gradient).meta_gradients(self.x, self.y)
        np.testing.assert_allclose(predictions[0, 0, 0], prediction, rtol=1e-6)
        np.testing.assert_allclose(loss, (prediction + 1) ** 2, rtol=1e-6)
        np.testing.assert_allclose(gradient, [[2 * (prediction + 1) * 8 * self.rate * self.w * share]], rtol=1e-6)

    def test_parameter_difference(self):
        (gradient,) = self.made(ParameterDifference()).meta_gradients(self.x, self.y)[2]
        np.testing.assert_array_equal(gradient, [[0.0]])
        v = 2 * self.rate * self.w
        (gradient,) = self.made(ParameterDifference(), 2).meta_gradients(self.x, self.y)[2]
        np.testing.assert_allclose(gradient, [[2 * self.rate * (v * self.w - 1) * v]], rtol=1e-6)

    def test_implicit_is_unrolled_at_the_minimum(self):
        # Steps of 0.2 against a pull of 2: what is left of the way to the minimum falls as 0.6^30 = 2e-7, about.
        gradients = [
            self.made(part, 30, ProximalSGD(0.2, 2.0)).meta_gradients(self.x, self.y)[2]
            for part in (Implicit(), Unrolled())
        ]
        assert abs(gradients[0][0].numpy()[0, 0]) > 0.1
        np.testing.assert_allclose(*gradients, rtol=1e-4)

    def test_all_weights_of_the_last_layer(self):
        learner = made(ZeroHead(), 1).adapt(*(batch()[0][name][0] for name in ("support_x", "support_y")), steps=0)
        assert [np.abs(v.numpy()).max() > 0 for v in learner.trainable_variables] == [True, False, False, False]
        # The bias of the first layer is 0 from the beginning.


STARTS = {
    "zero": (ZeroHead, 1, {}),
    "prototypes": (lambda: PrototypeHead("cosine", 3.0), 0, {}),
    "body": (PrototypeHead, 1, {"layers": keras_maml.exclude("head")}),
}


@pytest.fixture(params=STARTS)
def meta_model(request):
    start, steps, kwargs = STARTS[request.param]
    return made(start(), steps, model=network(NORMALIZATION("support"), name="head"), **kwargs)


class TestMetaModel:
    def test_all_ways_out_agree(self, meta_model, tmp_path):
        x, y = batch()
        predictions = meta_model.predict(x, verbose=0)
        loss, accuracy = meta_model.evaluate(x, y, verbose=0)
        expected = np.mean([CROSS_ENTROPY(y[t], predictions[t]) for t in range(2)])
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(accuracy, (predictions.argmax(-1) == y).mean(), rtol=1e-6)
        meta_model.export(tmp_path / "exported")
        signatures = tf.saved_model.load(tmp_path / "exported").signatures
        for t in range(2):
            supports = {name: tf.constant(x[name][t]) for name in ("support_x", "support_y")}
            query = {"query_x": tf.constant(x["query_x"][t])}
            learner = meta_model.adapt(*supports.values())
            adapted = signatures["adapt"](**supports)
            outputs = [
                learner.predict(x["query_x"][t], verbose=0),
                signatures["serving_default"](**supports, **query)["predictions"],
                signatures["predict"](**query, **adapted)["predictions"],
            ]
            for output in outputs:
                np.testing.assert_allclose(output, predictions[t], rtol=1e-4, atol=1e-5)
            head = {variable.path.replace("/", "_") for variable in meta_model.model.layers[-1].variables}
            assert head <= set(adapted)  # also where it does not adapt
        assert meta_model.algorithm.steps or len(adapted) == 4  # the output layer and the moments

    def test_what_a_start_sets_is_not_learned(self, meta_model):
        head = meta_model.model.layers[-1]
        before = [v.numpy() for v in head.variables]
        body = meta_model.model.layers[0].kernel.numpy()
        meta_model.compile(keras.optimizers.AdamW(0.1, weight_decay=0.5, use_ema=True), CROSS_ENTROPY)
        meta_model.fit(*batch(), verbose=0)
        for value, variable in zip(before, head.variables, strict=True):
            np.testing.assert_array_equal(value, variable)
        assert np.abs(meta_model.model.layers[0].kernel - body).max() > 0.01
        assert not {id(v) for v in meta_model.trainable_variables} & {id(v) for v in head.variables}
        expected = [v.path for v in meta_model.model.trainable_variables if not any(v is w for w in head.variables)]
        assert [v.path for v in meta_model.trainable_variables] == expected
        assert [v.path for v in meta_model.trainable_weights] == expected

    def test_saved_and_loaded(self, tmp_path):
        meta_model = made(PrototypeHead("cosine", 3.0), 1)
        x, y = batch()
        meta_model.train_on_batch(x, y)
        meta_model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        start, other = meta_model.algorithm.start, loaded.algorithm.start
        assert type(other) is type(start) and other.get_config() == start.get_config()
        assert len(loaded.optimizer.variables) == len(meta_model.optimizer.variables)
        for model in (loaded, meta_model):
            model.train_on_batch(x, y)  # with the moments of the optimizer
        found, expected = loaded.predict(x, verbose=0), meta_model.predict(x, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_padding_counts_for_nothing(self, meta_model):
        x, y = batch()
        rows = np.full((2, 1, 2), 7.0, "float32")
        padded = {
            "support_x": np.concatenate([x["support_x"], rows], 1),
            "support_y": np.concatenate([x["support_y"], np.zeros((2, 1), "int64")], 1),
            "query_x": x["query_x"],
            "support_weight": np.array([[1.0] * 6 + [0.0]] * 2, "float32"),
        }
        expected, found = meta_model.meta_gradients(x, y), meta_model.meta_gradients(padded, y)
        for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)

    def test_check_and_card_and_report(self, tmp_path):
        meta_model = made(PrototypeHead(), 1, NORMALIZATION("support"))
        x, y = batch()
        data = tf.data.Dataset.from_tensors((x, y)).repeat(2)
        findings = keras_maml.check(meta_model, data)
        assert not [f for f in findings.findings if f.severity == "error"], findings
        report = keras_maml.evaluate_episodes(meta_model, data, tasks=None, steps=(0, 1, 3))
        assert type(meta_model.start).__name__ in report.protocol["algorithm"]
        card = meta_model.card(report, tmp_path)
        rows = card["model"]["layers"]
        assert [rows[0]["meta_learned"], rows[-1]["meta_learned"]] == [12, 0]
        assert card["model"]["weights"]["set_by_the_start"] == 15
        assert card["model"]["weights"]["meta_learned"] == 12 + 8
        assert card["algorithm"]["start"]["class"] == type(meta_model.start).__name__
        assert "15 are set at the start of every task" in (tmp_path / "README.md").read_text()
        json.dumps(card)


def test_mappings_agree():
    x, y = batch()
    results = [
        tf.nest.flatten(tf.function(made(PrototypeHead(), 1, task_mapping=mapping).meta_gradients)(x, y))
        for mapping in ("parallel", Vectorized(jit_compile=False), "unrolled")
    ]
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_log_before_is_the_start():
    x, y = batch()
    meta_model = keras_maml.MetaModel(network(), algorithm(PrototypeHead(), 3), "parallel", log_before=True)
    meta_model.compile("adam", CROSS_ENTROPY)
    logs = meta_model.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss_before"], made(PrototypeHead()).evaluate(x, y, verbose=0)[0], rtol=1e-5)


def test_a_frozen_body_is_a_nearest_centroid_classifier():
    x, y = batch()
    expected = made(PrototypeHead()).predict(x, verbose=0)
    model = network()
    model.layers[0].trainable = False
    meta_model = made(PrototypeHead(), model=model)
    assert meta_model.trainable_variables == []
    weighted = x | {"support_weight": np.ones((2, 6), "float32")}
    for episodes in (x, weighted):
        np.testing.assert_allclose(meta_model.predict(episodes, verbose=0), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=f"nothing to meta-learn: model '{model.name}' has no trainable weights but"):
        meta_model.fit(x, y, verbose=0)


@pytest.mark.parametrize("kind", ["functional", "after another model", "softmax", "unbuilt", "nested body"])
def test_models(kind):
    """All of one function, cut at the same place."""
    x, y = batch()
    sequential = network()
    first, head = sequential.layers
    inputs = keras.Input((2,), name="x")
    model = sequential
    if kind == "functional":
        model = keras.Model({"x": inputs}, head(first(inputs)))
        x |= {name: {"x": x[name]} for name in ("support_x", "query_x")}
    elif kind == "after another model":
        head(first(2 * inputs))  # the first call of the layers, from the same inputs, is not the model's
        model = keras.Model(inputs, head(first(inputs)))
    elif kind == "softmax":
        model = keras.Sequential([keras.Input((2,)), first, head, layers.Softmax()])
    elif kind == "unbuilt":
        keras.utils.set_random_seed(0)
        model = keras.Sequential([layers.Dense(WIDTH, "tanh"), layers.Dense(WAYS)])
    elif kind == "nested body":
        model = keras.Sequential([keras.Input((2,)), keras.Sequential([keras.Input((2,)), first]), head])
    meta_model = made(PrototypeHead(), 2, model=model)
    if kind == "unbuilt":
        meta_model.predict(x, verbose=0)
        for variable, value in zip(model.variables, sequential.variables, strict=True):
            variable.assign(value)
    expected = made(PrototypeHead(), 2, model=network()).predict(batch()[0], verbose=0)
    if kind == "softmax":
        meta_model.compile("adam", "sparse_categorical_crossentropy")
        expected = keras.ops.softmax(expected)
    np.testing.assert_allclose(meta_model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(WIDTH, "tanh"), layers.Dense(WAYS)

    def call(self, x):
        return self.last(self.first(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 2)))
    return model


def functional(make, shape=(2,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, make(inputs))


REFUSED = {
    "subclassed": (subclassed, "which is subclassed"),
    "two outputs": (lambda: functional(lambda x: [layers.Dense(3)(x), layers.Dense(3)(x)]), "has several outputs"),
    "no bias": (lambda: network(use_bias=False), "3 units, and trainable weights"),
    "one unit": (lambda: network(ways=1), "1 units"),
    "activation": (lambda: network(activation="relu"), "activation 'relu'"),
    "no dense layer": (lambda: network(layers.Reshape((2, 2)), layers.Conv1D(3, 2), ways=3), "inputs of 3 axes"),
    "normalised outputs": (
        lambda: keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.BatchNormalization()]),
        "a BatchNormalization",
    ),
    "a sum": (lambda: functional(lambda x: layers.Add()([layers.Dense(2)(x), x])), "not alone"),
    "regularised bias": (lambda: network(bias_regularizer="l2"), "has a `bias_regularizer`"),
    "nested head": (lambda: keras.Sequential([keras.Input((2,)), network()]), "part of a nested model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_without_a_head_for_prototypes(kind):
    make, reason = REFUSED[kind]
    with pytest.raises(ValueError, match=f"`PrototypeHead` computes.*{reason}"):
        made(PrototypeHead(), 1, model=make())


def test_a_zero_head_suits_any_model():
    x, _ = batch()
    predictions = made(ZeroHead(), 1, model=subclassed(), evaluation_steps=0).predict(x, verbose=0)
    np.testing.assert_array_equal(predictions, np.zeros((2, 5, 3)))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"start": "prototypes"}, "`start` must be a `Start`, such as `PrototypeHead.*Received: start='prototypes'"),
        ({"start": None}, "`steps` must be an integer of at least 1. Received: steps=0"),
        ({"start": ZeroHead()}, "`steps` must be an integer of at least 1. Received: steps=0"),
        ({"start": PrototypeHead(), "rule": LearnedSGD()}, "With `steps=0` nothing is learned.*rule=LearnedSGD"),
        ({"start": PrototypeHead(), "meta_gradient": ParameterDifference()}, "no gradient through.*PrototypeHead"),
        (
            {"start": PrototypeHead(), "rule": ProximalSGD(), "meta_gradient": Implicit(), "steps": 2},
            "`Implicit` gives no gradient through.*PrototypeHead",
        ),
    ],
)
def test_algorithms_that_make_no_sense(kwargs, message):
    with pytest.raises(ValueError, match=message):
        algorithm(**kwargs)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"distance": "manhattan"}, "`distance` must be 'euclidean' or 'cosine'. Received: distance='manhattan'"),
        ({"scale": 0}, "`scale` must be a positive number, or None. Received: scale=0"),
        ({"scale": True}, "Received: scale=True"),
        ({"scale": float("inf")}, "Received: scale=inf"),
    ],
)
def test_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PrototypeHead(**kwargs)


def test_a_zero_head_that_does_not_adapt():
    with pytest.raises(ValueError, match="`ZeroHead` sets .* never change"):
        made(ZeroHead(), 1, model=network(name="head"), layers=keras_maml.exclude("head"))


@keras.saving.register_keras_serializable("test_heads")
class LearnedStart(Start):
    """The bias of the output layer starts at one learned number."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.level = self.add_weight(shape=(), initializer="ones", name="level")

    def resets(self, model):
        return [model.layers[-1].bias]

    def __call__(self, task, params):
        return task.reset(params, [tf.fill([WAYS], tf.convert_to_tensor(self.level))])


class TestAStartOfOnesOwn:
    """A level l of all biases: the mean squares of predictions b - t have the gradient 2 (b - t) / 3 in each bias."""

    def test_its_weights_are_learned(self, tmp_path):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(WAYS)])
        model.layers[0].kernel.assign(np.zeros((2, WAYS)))
        meta_model = keras_maml.MetaModel(model, algorithm(LearnedStart(), 1, 0.3))
        meta_model.compile("sgd", "mse")
        assert [v.path.split("/")[-1] for v in meta_model.trainable_variables] == ["kernel", "level"]
        x = {name: np.zeros((1, 1, 2)) for name in ("support_x", "query_x")} | {"support_y": np.zeros((1, 1, 3))}
        # b = l (1 - 0.2) after a step towards 0; query: mean (0.8 l - 2)^2, slope 2 (0.8 l - 2) 0.8 at l = 1.
        loss, _, gradients = meta_model.meta_gradients(x, np.full((1, 1, 3), 2.0))
        np.testing.assert_allclose([loss, gradients[1]], [1.2**2, -2 * 1.2 * 0.8], rtol=1e-6)
        meta_model.fit(x, np.full((1, 1, 3), 2.0), verbose=0)
        meta_model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(meta_model.start.level, 1 + 0.01 * 1.92, rtol=1e-6)
        np.testing.assert_array_equal(loaded.start.level, meta_model.start.level)

    def test_it_must_say_what_it_does(self):
        for call in (lambda: Start().resets(None), lambda: Start()(None, None)):
            with pytest.raises(NotImplementedError, match="Start must implement"):
                call()
