"""Run cards: what was trained, on what, with which settings and results, so that a number can be traced.

    model, data, settings, report  ->  `facts`, plain JSON  ->  `card_text.markdown`, the README.md
"""

import dataclasses
import hashlib
import json
import math
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_maml import export
from keras_maml.card_text import MARK, markdown
from keras_maml.episodes import describe
from keras_maml.protocols import describe_algorithm, describe_normalisation, describe_seed, versions
from keras_maml.reports import EpisodeReport

FORMAT = 1  # of card.json
FORMAT_KEY = "keras_maml_card"
ADAPTS = ", adapts "  # of `describe_algorithm`


def write(meta_model, report, directory, episodes=None, description=None, overwrite=False):
    """See `MetaModel.card`."""
    folder = pathlib.Path(directory)
    if not isinstance(report, EpisodeReport):
        raise ValueError(
            "`report` must be an `EpisodeReport`, as `keras_maml.evaluate_episodes(meta_model, episodes)` returns it. "
            f"Received: report={report if report is None else type(report).__name__}."
        )
    if description is not None and not isinstance(description, str):
        raise ValueError(f"`description` must be Markdown text. Received: {type(description).__name__}.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`directory` must be a folder, new or there already. Received: the file '{folder}'.")
    targets = folder / "README.md", folder / "card.json"
    foreign = [] if overwrite else [path.name for path in targets if path.exists() and not _is_card(path)]
    if foreign:
        raise ValueError(
            f"'{folder}' holds {' and '.join(foreign)} that no card wrote. Pass another folder, or `overwrite=True` "
            "to replace what is there."
        )
    card = facts(meta_model, report, episodes, description)
    # Texts first: whatever fails, fails before a file is touched.
    texts = markdown(card, report, exported=(folder / "saved_model.pb").exists()), _json(card)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(targets, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return card


def facts(meta_model, report, episodes=None, description=None):
    """All that a card says, as plain JSON: dicts, lists, strings, finite numbers, booleans and `None`."""
    meta_model._assert_compile_called("card")
    if not meta_model.model.built:
        raise ValueError(
            f"Model '{meta_model.model.name}' is not built, so there is nothing to describe yet. `fit` the MetaModel, "
            "or call it on an episode, before `card`."
        )
    _check_same(meta_model, report)
    return {
        FORMAT_KEY: FORMAT,
        "description": description,
        "model": _model(meta_model),
        "algorithm": _algorithm(meta_model),
        "training": _training(meta_model),
        "training_episodes": None if episodes is None else _episodes(episodes),
        "results": _plain([_result(report, metric, k) for metric in report.metrics for k in report.steps]),
        "signatures": _signatures(meta_model),
        "versions": versions(),
        "report": json.loads(report.to_json()),
    }


def _is_card(path):
    """Whether a card wrote this file."""
    try:
        text = path.read_text(encoding="utf-8")
        return text.startswith(MARK) if path.suffix == ".md" else FORMAT_KEY in json.loads(text)
    except (OSError, TypeError, ValueError):  # a folder, or no text, or no JSON, or JSON of a number
        return False


def _check_same(meta_model, report):
    """Refuses a report of another model, or of other weights, as far as its protocol tells."""
    here = {
        "model": meta_model.model.name,
        "outer_steps": int(meta_model.outer_step.numpy()),
        # Without what adapts: the words for a predicate or a layer object are others in another process.
        "algorithm": describe_algorithm(meta_model.algorithm).partition(ADAPTS)[0],
    }
    there = {name: report.protocol.get(name, value) for name, value in here.items()}
    there["algorithm"] = there["algorithm"].partition(ADAPTS)[0]
    differ = [name for name, value in here.items() if there[name] != value]
    if differ:
        told = "; ".join(f"{name}={there[name]!r}, here {here[name]!r}" for name in differ)
        raise ValueError(
            f"The report is not of this MetaModel as it is now. Received: a report of {told}. Evaluate again: "
            "`report = keras_maml.evaluate_episodes(meta_model, episodes)`."
        )


def _model(meta_model):
    model = meta_model.model
    adapting = [v for v, adapts in zip(model.trainable_variables, meta_model.mask, strict=True) if adapts]
    own = {id(v) for v in model.variables}
    others = [v for v in meta_model.trainable_variables if id(v) not in own]
    return {
        "name": model.name,
        "class": type(model).__name__,
        "layers": _layers(model, {id(v) for v in adapting}, {id(v) for v in meta_model._reset.value}),
        "weights": {
            "all": _size(model.weights),
            "meta_learned": _size(model.trainable_variables) - _size(meta_model._reset.value),
            "set_by_the_start": _size(meta_model._reset.value),
            "adapting": _size(adapting),
            "of_the_algorithm": _size(others),
        },
        "sha256": _sha256(meta_model.weights),
        "normalisation": describe_normalisation(model),
        "precision": model.dtype_policy.name,
    }


def _layers(model, adapting, reset):
    """A dict for each layer, those of nested models in their place, shared ones once."""
    rows, seen, listed = [], set(), set()

    def visit(owner, prefix):
        for layer in owner.layers:
            if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
                continue
            seen.add(id(layer))
            if isinstance(layer, keras.Model):
                visit(layer, f"{prefix}{layer.name}/")
            else:
                add(f"{prefix}{layer.name}", type(layer).__name__, layer.weights, layer)
        if owner is not model:
            rest(owner, prefix.rstrip("/"))

    def add(name, kind, weights, layer):
        listed.update(id(v) for v in weights)
        trainable = [v for v in weights if v.trainable]
        rows.append(
            {
                "name": name,
                "class": kind,
                "output_shape": _output_shape(layer),
                "weights": _size(weights),
                "trainable": _size(trainable),
                "meta_learned": _size([v for v in trainable if id(v) not in reset]),
                "adapting": _size([v for v in trainable if id(v) in adapting]),
                "config": _config(layer),
            }
        )

    def rest(owner, name):
        """Weights that a subclassed model holds itself, beside its layers."""
        left = [v for v in owner.weights if id(v) not in listed]
        if left:
            add(name, type(owner).__name__, left, owner)

    visit(model, "")
    rest(model, model.name)
    return rows


def _output_shape(layer):
    try:
        return _plain(layer.output.shape)
    except (AttributeError, ValueError):  # of a subclassed model, or called several times, or several outputs
        return None


def _config(layer):
    try:
        return _plain(layer.get_config())
    except NotImplementedError:
        return None


def _size(variables):
    return int(sum(math.prod(v.shape) for v in variables))


def _sha256(variables):
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()


def _algorithm(meta_model):
    algorithm = meta_model.algorithm
    return {
        "rule": _plain(algorithm.rule),
        "meta_gradient": _plain(algorithm.meta_gradient),
        "start": _plain(algorithm.start),
        "steps": algorithm.steps,
        "evaluation_steps": meta_model._evaluation_steps,
    }


def _training(meta_model):
    metrics, weighted_metrics = meta_model._asked_metrics.value
    weights = meta_model._task_loss.weights
    return {
        "optimizer": _plain(meta_model.optimizer),
        "outer_steps": int(meta_model.outer_step.numpy()),
        "loss": _plain(meta_model.loss),
        "loss_weights": None if all(w == 1 for w in tf.nest.flatten(weights)) else _plain(weights),
        "inner_loss": _plain(meta_model.inner_loss),
        "metrics": _plain(metrics),
        "weighted_metrics": _plain(weighted_metrics),
        "task_mapping": _plain(meta_model.task_mapping),
        "skip_non_finite": meta_model.skip_non_finite,
    }


def _episodes(episodes):
    """What `describe` finds in the first batches, and what the dataset knows of itself."""
    plan = getattr(episodes, "plan", None)
    known = {"seed": describe_seed(episodes)}
    if plan is not None:
        known |= {"shard": plan.shard, "classes": len(plan.classes) or None}
    return _plain(known | describe(episodes, print_fn=lambda line: None))


def _result(report, metric, steps):
    return {**dataclasses.asdict(report.summary(metric, steps)), "better": report.directions.get(metric)}


def _signatures(meta_model):
    def plain(specs):
        return {name: {"shape": list(spec.shape), "dtype": spec.dtype.name} for name, spec in specs.items()}

    found = export.signatures(meta_model)
    return {name: {"takes": plain(taken), "returns": plain(given)} for name, (taken, given) in found.items()}


def _plain(value):
    """As JSON: objects of Keras as `{"class": ..., "config": ...}`, functions by name, what is not finite as text."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        if {"class_name", "config"} <= value.keys():  # as Keras serializes an object
            kind = value["class_name"]
            if kind == "__lambda__":
                return "<lambda>"
            return _plain(value["config"]) if kind == "function" else {"class": kind, "config": _plain(value["config"])}
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple | set | tf.TensorShape):
        return [_plain(member) for member in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if tf.is_tensor(value) or isinstance(value, keras.Variable):
        return _plain(keras.ops.convert_to_numpy(value))
    if hasattr(value, "get_config") and not isinstance(value, type):
        return {"class": type(value).__name__, "config": _config(value)}
    return getattr(value, "__name__", type(value).__name__)


def _json(card):
    """Strict JSON, indented but for the values of the single tasks."""
    members = []
    for key, value in card.items():
        text = json.dumps(value, allow_nan=False, indent=None if key == "report" else 2)
        members.append(f"  {json.dumps(key)}: " + text.replace("\n", "\n  "))
    return "{\n" + ",\n".join(members) + "\n}\n"
