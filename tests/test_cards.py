"""Run cards: true to the model, the export and the report; and they replace nothing that is not theirs."""

import dataclasses
import hashlib
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_maml
from keras_maml import card_text, cards, episodes

RANDOM = np.random.default_rng(0)
LABELS = np.arange(60) % 6
IMAGES = RANDOM.normal(size=(60, 4, 4, 1)).astype("float32")
TRAIN = episodes.from_arrays(IMAGES, LABELS, 3, 1, 2, tasks=2, seed=7)
JUDGED = episodes.from_arrays(IMAGES, LABELS, 3, 2, 4, tasks=5, seed=episodes.fixed(10))


def net():
    encoder = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(2, 3, name="filters"), layers.BatchNormalization(name="norm")],
        name="encoder",
    )
    stem = layers.Conv2D(1, 1, name="stem", trainable=False)
    return keras.Sequential(
        [keras.Input((4, 4, 1)), stem, encoder, layers.Flatten(name="flat"), layers.Dense(3, name="head")], name="net"
    )


def compiled(model, algorithm, optimizer="sgd", metrics=("accuracy",)):
    meta_model = keras_maml.MetaModel(model, algorithm)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    meta_model.compile(optimizer=optimizer, loss=loss, metrics=list(metrics))
    return meta_model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A trained learner, its report, the folder of its export, and its card."""
    folder = tmp_path_factory.mktemp("export")
    schedule = keras.optimizers.schedules.CosineDecay(0.02, 50)
    meta_model = compiled(net(), keras_maml.ANIL(0.25, 1, 3), keras.optimizers.Adam(schedule))
    meta_model.outer_step.assign(4)  # as after a `fit` of four batches
    report = keras_maml.evaluate_episodes(meta_model, JUDGED, tasks=10, steps=(0, 3), verbose=0)
    meta_model.export(folder)
    card = meta_model.card(report, folder, episodes=TRAIN, description="Noise, *drawn* once.")
    return meta_model, report, folder, card


def rows(text, heading):
    """Cells of the table whose first header cell is `heading`, by the first cell of a row."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            break
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_report_comes_back_from_strict_json(written):
    _, report, folder, card = written
    read = strict((folder / "card.json").read_text())
    assert read == card
    back = keras_maml.EpisodeReport.from_json(json.dumps(read["report"]))
    assert back.to_json() == report.to_json()
    np.testing.assert_array_equal(back.of("accuracy", 3), report.of("accuracy", 3))


def test_results_are_those_of_the_report(written):
    _, report, folder, card = written
    text = (folder / "README.md").read_text()
    values = report.values["accuracy"][:, 1]
    # The t quantile of 9 degrees of freedom is 2.262.
    mean, margin = values.mean(), 2.262 * values.std(ddof=1) / np.sqrt(10)
    shown = {(name, steps): cells for name, steps, *cells in rows(text, "metric")}
    assert list(shown) == [("loss ↓", "0"), ("loss ↓", "3"), ("accuracy ↑", "0"), ("accuracy ↑", "3")]
    found = [float(number) for number in shown["accuracy ↑", "3"][0].split(" ± ")]
    np.testing.assert_allclose(found, [mean, margin], atol=0.006)
    assert f"**accuracy {shown['accuracy ↑', '3'][0]}** after 3 inner steps" in text
    assert "over 10 tasks of 3 ways, 2 shots, 4 queries a class." in text
    result = next(r for r in card["results"] if (r["metric"], r["steps"]) == ("accuracy", 3))
    np.testing.assert_allclose([result["mean"], result["margin"]], [mean, margin], rtol=1e-3)
    assert (result["tasks"], result["better"]) == (10, "up")
    protocol = dict(rows(text, "protocol"))
    assert (protocol["shots"], protocol["steps"], protocol["seed"]) == ("2", "0, 3", "fixed(10, seed=0)")


def test_layers_weights_and_what_adapts(written):
    meta_model, _, folder, card = written
    # 1 -> 1 channels: 1 + 1. 3 x 3 x 1 x 2 + 2 = 20. Two channels normalised: 4 learned, 4 moments. 8 x 3 + 3 = 27.
    assert rows((folder / "README.md").read_text(), "layer") == [
        ["`stem`", "Conv2D", "(?, 4, 4, 1)", "2", "frozen"],
        ["`encoder/filters`", "Conv2D", "(?, 2, 2, 2)", "20", "no"],
        ["`encoder/norm`", "BatchNormalization", "(?, 2, 2, 2)", "8", "no"],
        ["`flat`", "Flatten", "(?, 8)", "", ""],
        ["`head`", "Dense", "(?, 3)", "27", "yes"],
    ]
    weights = {"all": 57, "meta_learned": 51, "set_by_the_start": 0, "adapting": 27, "of_the_algorithm": 0}
    assert card["model"]["weights"] == weights
    assert card["model"]["layers"][1]["config"]["kernel_size"] == [3, 3]
    raw = b"".join(np.ascontiguousarray(w).tobytes() for w in meta_model.get_weights())
    assert card["model"]["sha256"] == hashlib.sha256(raw).hexdigest()


def test_settings_and_training_episodes(written):
    _, _, folder, card = written
    text = (folder / "README.md").read_text()
    settings = dict(rows(text, "setting"))
    assert settings["inner update"] == "`SGD(learning_rate=0.25)`"
    assert settings["inner steps"] == "1 in training, 3 elsewhere"
    assert settings["optimizer"].startswith(
        "`Adam(learning_rate=CosineDecay(initial_learning_rate=0.02, decay_steps=50, alpha=0, warmup_steps=0), beta_1="
    )
    assert settings["outer steps"] == "4" and settings["metrics"] == "`accuracy`"
    assert settings["tasks that are not finite"] == "not left out" and card["training"]["skip_non_finite"] is False
    assert "from_logits=True" in settings["loss"]
    assert card["training"]["optimizer"]["config"]["learning_rate"]["config"]["decay_steps"] == 50
    assert card["training"]["loss"]["config"]["from_logits"] is True
    told = dict(rows(text, "episodes"))
    expected = {"ways": "3", "shots": "1", "queries a class": "2", "tasks a batch": "2", "batches": "endless"}
    expected |= {"seed": "7, from episode 0", "classes": "6"}
    assert {name: told[name] for name in expected} == expected
    assert told["`support_x`"] == "(2, 3, 4, 4, 1) float32"
    assert dict(rows(text, "version"))["keras"] == keras.__version__
    assert "\n\nNoise, *drawn* once.\n\n" in text


@pytest.mark.parametrize("statistics", ["batch", "support"])
def test_signatures_are_those_of_the_file(statistics, tmp_path):
    class Twice(keras.Model):  # a class of its own, nested inputs and outputs, moments that `adapt` passes on
        def __init__(self):
            super().__init__(name="twice")
            self.dense = layers.Dense(3)
            self.norm = keras_maml.layers.BatchNormalization(statistics)
            self.own = self.add_weight(shape=(3,), name="own")

        def call(self, x):
            return {"logits": self.own + self.norm(self.dense(x["a"] + x["b"]))}

    loss = {"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    meta_model = keras_maml.MetaModel(Twice(), keras_maml.MetaSGD(0.1, 1))
    meta_model.compile(loss=loss)
    x = {name: RANDOM.normal(size=(2, 6, 4)).astype("float32") for name in "ab"}
    y = {"logits": np.tile(np.arange(3), (2, 2))}
    batch = {"support_x": x, "support_y": y, "query_x": x}, y
    report = keras_maml.evaluate_episodes(meta_model, batch, tasks=2, steps=1, verbose=0)
    meta_model.export(tmp_path)
    card = meta_model.card(report, tmp_path, episodes=[batch])
    served = tf.saved_model.load(tmp_path).signatures
    assert card["signatures"].keys() == served.keys()
    for name, told in card["signatures"].items():
        for part, found in (
            ("takes", served[name].structured_input_signature[1]),
            ("returns", served[name].structured_outputs),
        ):
            specs = {key: {"shape": list(spec.shape), "dtype": spec.dtype.name} for key, spec in found.items()}
            assert told[part] == specs, (name, part)

    # The code of the card runs.
    text = (tmp_path / "README.md").read_text()
    code = re.search(r"```python\n(import tensorflow.*?)```", text, re.S)[1]
    code = code.replace("path/to/this/folder", str(tmp_path))
    scope = {f"{part}_x_{key}": tf.constant(x[key][0]) for part in ("support", "query") for key in "ab"}
    labels = served["adapt"].structured_input_signature[1]["support_y_logits"]
    scope["support_y_logits"] = tf.constant(y["logits"][0], labels.dtype)
    exec(code, scope)
    expected = meta_model(batch[0])["logits"][0]
    np.testing.assert_allclose(scope["outputs"]["predictions_logits"], expected, atol=1e-5)

    # 4 x 3 + 3 in the dense layer, 2 x 3 learned and 2 x 3 moments in the other, 3 of the class, in rows of their own.
    table = {name: cells for name, *cells in rows(text, "layer")}
    names = meta_model.model.dense.name, meta_model.model.norm.name, "twice"
    assert [table[f"`{name}`"][2] for name in names] == ["15", "12", "3"]
    assert card["model"]["weights"]["of_the_algorithm"] == 15 + 6 + 3  # a step size each
    assert "with 24 weights of its own, meta-learned" in text
    assert dict(rows(text, "episodes"))["ways"] == "3"


def handmade(values=((1.0, 0.5), (2.0, 1.5), (float("nan"), 0.1)), **more):
    values = np.array(values)
    return keras_maml.EpisodeReport(
        values={"loss": values, "a|b": 2 * values},
        steps=(0, 4),
        loss_before=values[:, 0],
        protocol=more.pop("protocol", {}),
        episodes=np.arange(len(values)),
        directions={"loss": "down", "a|b": None},
        **more,
    )


@pytest.fixture(scope="module")
def line():
    meta_model = keras_maml.MetaModel(keras.Sequential([keras.Input((1,)), layers.Dense(1)], name="line"))
    meta_model.compile(loss="mse")
    return meta_model


def test_not_finite_domains_and_marks_of_markdown(line, tmp_path):
    report = handmade(domains=("x<y", "z", "x<y"))
    card = line.card(report, tmp_path)
    read = strict((tmp_path / "card.json").read_text())
    back = keras_maml.EpisodeReport.from_json(json.dumps(read["report"]))
    np.testing.assert_array_equal(back.values["loss"], report.values["loss"])
    assert card["results"][0]["non_finite"] == 1 and card["results"][2]["worst_decile"] == "nan"
    text = (tmp_path / "README.md").read_text()
    assert {len(cells) for cells in rows(text, "metric")} == {7}
    assert [cells[0] for cells in rows(text, "metric")] == ["loss ↓", "loss ↓", "a\\|b", "a\\|b"]
    assert rows(text, "metric")[0][-1] == "1"
    # After 4 steps, domain z has one task, of loss 1.5; the others have 0.3 +- 12.7 * 0.2.
    assert [cells[:3] for cells in rows(text, "domain")] == [["x&lt;y", "2", "0.3 ± 2.5"], ["z", "1", "1.5"]]
    assert "What `meta_model.export(folder)` writes" in text and "### Protocol" not in text
    assert "Not recorded: the card was written without `episodes=`." in text


def test_cards_replace_cards_and_nothing_else(line, tmp_path):
    folder = tmp_path / "new" / "folder"
    line.card(handmade(), folder)
    first = (folder / "README.md").read_text()
    assert first.startswith(card_text.MARK)
    line.card(handmade(((1.0, 0.25), (2.0, 0.75))), folder)
    assert "| loss ↓ | 4 | 0.5 ± 3.2 |" in (folder / "README.md").read_text()

    for name, foreign in (("README.md", "# My model\n"), ("card.json", '{"mine": 1}'), ("card.json", "not JSON")):
        line.card(handmade(), folder, overwrite=True)
        before = {path.name: path.read_text() for path in folder.iterdir()} | {name: foreign}
        (folder / name).write_text(foreign)
        with pytest.raises(ValueError, match=f"holds {name} that no card wrote.*overwrite=True"):
            line.card(handmade(), folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_refuses_what_it_cannot_describe(line, written, tmp_path):
    meta_model, report, *_ = written
    for wrong, received in ((None, "report=None"), ({"loss": 1.0}, "report=dict")):
        with pytest.raises(ValueError, match=f"must be an `EpisodeReport`.*Received: {received}"):
            line.card(wrong, tmp_path)
    with pytest.raises(ValueError, match="not of this MetaModel.*model='net', here 'line'"):
        line.card(report, tmp_path)
    stale = dataclasses.replace(report, protocol=report.protocol | {"outer_steps": 3})
    with pytest.raises(ValueError, match="outer_steps=3, here 4. Evaluate again"):
        meta_model.card(stale, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="must be a folder.*Received: the file '.*file'"):
        line.card(handmade(), tmp_path / "file")
    with pytest.raises(ValueError, match="`description` must be Markdown text. Received: int"):
        line.card(handmade(), tmp_path, description=3)
    unbuilt = compiled(keras.Sequential([layers.Dense(3)]), keras_maml.MAML())
    with pytest.raises(ValueError, match="is not built.*`fit` the MetaModel"):
        unbuilt.card(handmade(), tmp_path)
    with pytest.raises(ValueError, match="compile"):
        keras_maml.MetaModel(net()).card(handmade(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_read_by_another_process_has_other_words_for_a_predicate(tmp_path):
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)], name="line")
    algorithm = dataclasses.replace(keras_maml.MAML(0.1, 2), layers=lambda v: v.name == "bias")
    meta_model = keras_maml.MetaModel(model, algorithm)
    meta_model.compile(loss="mse")
    words = "SGD(learning_rate=0.1), Unrolled, adapts <function <lambda> at 0x1>"
    meta_model.card(handmade(protocol={"algorithm": words}), tmp_path)
    (dense,) = rows((tmp_path / "README.md").read_text(), "layer")
    assert dense[-1] == "in part"
    with pytest.raises(ValueError, match="algorithm='SGD\\(learning_rate=0.2\\), Unrolled'"):
        meta_model.card(handmade(protocol={"algorithm": words.replace("0.1)", "0.2)")}), tmp_path)


def test_objects_in_words():
    def own_metric(y, p):
        return p

    plain = cards._plain(
        [keras.losses.BinaryCrossentropy(True), own_metric, {"a": np.float32(0.001)}, keras.activations.relu, np.inf]
    )
    assert plain[0]["class"] == "BinaryCrossentropy" and plain[0]["config"]["from_logits"] is True
    assert plain[1:] == ["own_metric", {"a": pytest.approx(0.001)}, "relu", "inf"]
    assert "from_logits=True" in card_text.in_words(plain[0])
    assert card_text.in_words(plain[1:3]) == "own_metric, a: 0.001"
    averaged = card_text.in_words(cards._plain(keras.optimizers.SGD(0.1, use_ema=True)))
    assert averaged == "SGD(learning_rate=0.1, use_ema=True, ema_momentum=0.99, momentum=0)"
    lambda_layer = cards._plain(keras.saving.serialize_keras_object(layers.Lambda(lambda x: 2 * x)))
    assert lambda_layer["config"]["function"] == "<lambda>"


def test_long_tables_of_layers_fold(tmp_path):
    model = keras.Sequential([keras.Input((1,)), *(layers.Dense(1) for _ in range(card_text.FOLDED + 1))], name="deep")
    meta_model = keras_maml.MetaModel(model)
    meta_model.compile(loss="mse")
    meta_model.card(handmade(), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "<details><summary>21 layers</summary>\n\n| layer |" in text
    assert len(rows(text, "layer")) == 21
