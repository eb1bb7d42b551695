"""The README.md of a run card: Markdown from the facts that `keras_maml.cards` gathers."""

import math

from keras_maml.comparisons import with_margin
from keras_maml.reports import DIVERGED

MARK = "<!-- keras_maml run card"
FIRST_LINE = f"{MARK}: written by MetaModel.card, which replaces it. -->"
FOLDED = 20  # layers, from which on their table is folded
SIZES = ("ways", "shots", "queries_of_a_class", "supports", "queries")


def markdown(card, report, exported):
    """The whole text.

    Args:
        card: what `cards.facts` returns.
        report: the `EpisodeReport` that it was made of.
        exported: whether a SavedModel lies in the same folder.
    """
    parts = [
        FIRST_LINE,
        *_heading(card, report),
        "## Results",
        *_results(card, report),
        "## Use",
        *_use(card, exported),
        "## Model",
        *_model(card["model"]),
        "## Training",
        *_training(card),
        "## Versions",
        *_versions(card),
    ]
    return "\n\n".join(parts) + "\n"


def _heading(card, report):
    yield f"# {_text(card['model']['name'])}"
    yield (
        "A few-shot learner: it adapts to a new task from a few labelled examples (supports), then predicts for others "
        "of that task (queries). Meta-learned with keras_maml."
    )
    if card["description"]:
        yield card["description"].strip()
    metric = report.metrics[min(1, len(report.metrics) - 1)]
    served = report.protocol.get("evaluation_steps")  # what the SavedModel makes
    found = report.summary(metric, served if served in report.steps else None)
    (headline,) = report._headline()
    tasks = _text(headline.rpartition(": ")[2])
    left_out = f", {found.non_finite} not finite and left out" if found.non_finite else ""
    value = f"{_text(metric)} {_interval(found.mean, found.margin)}"
    steps = _count(found.steps, "inner step")
    yield f"**{value}** after {steps}: mean and 95 % interval over {tasks}{left_out}."


def _results(card, report):
    yield (
        "Query loss and metrics by the number of inner steps. A tenth of the tasks are worse than the worst decile. "
        f"Diverged: the loss is finite and more than {DIVERGED:g} times that before adaptation. Tasks that are not "
        "finite are left out of the other columns."
    )
    rows = [("metric", "inner steps", "mean, 95 % interval", "median", "worst decile", "diverged", "not finite")]
    for row in (report.summary(metric, steps) for metric in report.metrics for steps in report.steps):
        arrow = {"up": " ↑", "down": " ↓", None: ""}[report.directions.get(row.metric)]
        numbers = _interval(row.mean, row.margin), _number(row.median), _number(row.worst_decile)
        diverged = row.diverged if row.metric == "loss" else ""
        rows.append((f"{_text(row.metric)}{arrow}", row.steps, *numbers, diverged, row.non_finite))
    yield _table(rows, right=range(1, 7))
    if report.domains is not None:
        yield _by_domain(report)
    protocol = {key: value for key, value in report.protocol.items() if key != "versions"}
    if protocol:
        yield "### Protocol"
        yield _table([("protocol", ""), *((_words(key), _entry(value)) for key, value in protocol.items())])


def _by_domain(report):
    metrics = report.metrics
    rows = [("domain", "tasks", *map(_text, metrics))]
    for name, part in report.by_domain().items():
        found = [part.summary(metric) for metric in metrics]
        rows.append((_text(name), part.tasks, *(_interval(row.mean, row.margin) for row in found)))
    heading = f"By domain, after {_count(report.steps[-1], 'inner step')}:"
    return f"{heading}\n\n{_table(rows, right=range(1, 2 + len(metrics)))}"


def _use(card, exported):
    signatures = card["signatures"]
    served, adapt, predict = (signatures[name] for name in ("serving_default", "adapt", "predict"))
    queries = [name for name in predict["takes"] if name in served["takes"]]
    passed = adapt["returns"]
    results = [*served["returns"]]
    written = "The SavedModel in this folder" if exported else "What `meta_model.export(folder)` writes"
    folder = "path/to/this/folder" if exported else "path/to/the/export"
    yield f"{written} needs TensorFlow alone: adaptation is part of it."
    everything, supports, asked = (
        ", ".join(f"{name}={name}" for name in names) for names in (served["takes"], adapt["takes"], queries)
    )
    yield "\n".join(
        [
            "```python",
            "import tensorflow as tf",
            "",
            f'learner = tf.saved_model.load("{folder}")',
            "",
            "# One request: adapt to the supports, predict the queries.",
            f'outputs = learner.signatures["serving_default"]({everything})',
            *(f'outputs["{name}"]' for name in results),
            "",
            "# Or adapt once, keep the weights that come back, predict many times.",
            f'weights = learner.signatures["adapt"]({supports})',
            f'outputs = learner.signatures["predict"]({asked}, **weights)',
            "```",
        ]
    )
    rows = [("signature", "takes", "returns")]
    rows.append(("`serving_default`", _specs(served["takes"]), _specs(served["returns"])))
    rows.append(("`adapt`", _specs(adapt["takes"]), f"the adapted weights: {_tensors(passed)}"))
    asked = {name: predict["takes"][name] for name in queries}
    rows.append(("`predict`", f"{_specs(asked)}<br>and what `adapt` returns", _specs(predict["returns"])))
    yield _table(rows)
    steps = _count(card["algorithm"]["evaluation_steps"], "inner step")
    yield (
        f"One task a request, arguments by name, as many supports and queries as there are; adaptation makes {steps}. "
        "A server keeps nothing between requests."
    )


def _model(model):
    weights = model["weights"]
    yield (
        f"{_code(model['name'])}, a {_text(model['class'])} with {_count(weights['all'], 'weight')}: "
        f"{weights['meta_learned']:,} are meta-learned, {_adapting(weights)} adapt to a task. Layers that do not are "
        "the same in all tasks."
    )
    rows = [("layer", "kind", "output", "weights", "adapts")]
    for layer in model["layers"]:
        size = f"{layer['weights']:,}" if layer["weights"] else ""
        rows.append((_code(layer["name"]), _text(layer["class"]), _shape(layer["output_shape"]), size, _adapts(layer)))
    table = _table(rows, right=[3])
    count = len(model["layers"])
    yield table if count <= FOLDED else f"<details><summary>{count} layers</summary>\n\n{table}\n\n</details>"
    yield _table(
        [
            ("property", ""),
            ("normalisation", _text(model["normalisation"])),
            ("precision", _text(model["precision"])),
            ("SHA-256 of `meta_model.weights`", _code(model["sha256"])),
        ]
    )


def _adapting(weights):
    if not weights["set_by_the_start"]:
        return f"of which {weights['adapting']:,}"
    return f"{weights['set_by_the_start']:,} are set at the start of every task, and {weights['adapting']:,} of these"


def _adapts(layer):
    if not layer["weights"]:
        return ""
    if not layer["trainable"]:
        return "frozen"
    if not layer["adapting"]:
        return "no" if layer["meta_learned"] else "no, set at the start"
    return "yes" if layer["adapting"] == layer["trainable"] else "in part"


def _training(card):
    algorithm, training, extra = card["algorithm"], card["training"], card["model"]["weights"]["of_the_algorithm"]
    optional = {
        "inner loss": training["inner_loss"],
        "loss weights": training["loss_weights"],
        "metrics": training["metrics"],
        "weighted metrics": training["weighted_metrics"],
    }
    learned = f", with {_count(extra, 'weight')} of its own, meta-learned" if extra else ""
    yield _table(
        [
            ("setting", ""),
            ("inner update", _code(in_words(algorithm["rule"])) + learned),
            *([("start", _code(in_words(algorithm["start"])))] if algorithm["start"] else []),
            ("outer gradient", _code(in_words(algorithm["meta_gradient"]))),
            ("inner steps", f"{algorithm['steps']} in training, {algorithm['evaluation_steps']} elsewhere"),
            ("optimizer", _code(in_words(training["optimizer"]))),
            ("outer steps", f"{training['outer_steps']:,}"),
            ("loss", _code(in_words(training["loss"]))),
            *((name, _code(in_words(value))) for name, value in optional.items() if value),
            ("task mapping", _code(in_words(training["task_mapping"]))),
            ("tasks that are not finite", "left out" if training["skip_non_finite"] else "not left out"),
        ]
    )
    yield "### Episodes"
    if card["training_episodes"] is None:
        yield "Not recorded: the card was written without `episodes=`."
    else:
        yield _episodes(card["training_episodes"])


def _episodes(episodes):
    words = {"queries_of_a_class": "queries a class", "supports": "supports a task", "queries": "queries a task"}
    skipped = ("supports", "queries") if "ways" in episodes else ()
    rows = [("episodes", "")]
    rows += [(words.get(k, k), _range(episodes[k])) for k in SIZES if k in episodes and k not in skipped]
    rows.append(("tasks a batch", " or ".join(map(str, episodes["tasks"]))))
    length = {None: "unknown", "inf": "endless"}.get(episodes["length"], episodes["length"])
    rows.append(("batches", length if isinstance(length, str) else f"{length:,}"))
    rows.append(("seed", _text(episodes["seed"])))
    if episodes.get("classes"):
        rows.append(("classes", f"{episodes['classes']:,}"))
    if episodes.get("shard"):
        rows.append(("shard", "worker {} of {}".format(*episodes["shard"])))
    for name, count in episodes.get("domains", {}).items():
        rows.append((f"domain {_text(name)}", f"{100 * count / episodes['episodes']:.0f} %"))
    for name, (shape, dtype) in episodes["arrays"].items():
        rows.append((_code(name), f"{_shape(shape)} {dtype}"))
    return f"{_table(rows)}\n\nCounted in {_count(episodes['episodes'], 'episode')}."


def _versions(card):
    here, there = card["versions"], card["report"]["protocol"].get("versions", card["versions"])
    rows = [("version", ""), *((name, _text(version)) for name, version in here.items())]
    if here != there:
        names = [*here, *(name for name in there if name not in here)]
        rows = [("version", "of this card", "of the evaluation")]
        rows += [(name, _text(here.get(name, "")), _text(there.get(name, ""))) for name in names]
    yield _table(rows)
    yield "`card.json` holds all of this for programs, with every setting and the values of every task:"
    yield "\n".join(
        [
            "```python",
            "import json, keras_maml",
            "",
            'card = json.load(open("card.json"))',
            'report = keras_maml.EpisodeReport.from_json(json.dumps(card["report"]))',
            "```",
        ]
    )


def in_words(value):
    """A plain object on one line, without what is off: `Adam(learning_rate=0.001, ...)`."""
    if isinstance(value, dict) and value.keys() == {"class", "config"}:
        config = dict(value["config"] or {})
        if not config.get("use_ema", True):
            config.pop("ema_momentum", None)
        hidden = ("name", "dtype", "trainable")
        shown = {k: v for k, v in config.items() if k not in hidden and v is not None and v is not False}
        return f"{value['class']}({', '.join(f'{k}={in_words(v)}' for k, v in shown.items())})"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {in_words(member)}" for key, member in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    # Settings live in variables of single precision: 0.001 comes back as 0.0010000000474974513.
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _table(rows, right=()):
    header, *body = rows
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *body))


def _text(value):
    """Text as it is, where Markdown would read something into it."""
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*`[]":
        text = text.replace(mark, f"\\{mark}")
    return text


def _code(value):
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""


def _words(key):
    return _text(key.replace("_", " "))


def _entry(value):
    return _text(", ".join(map(str, value)) if isinstance(value, list | tuple) else value)


def _interval(mean, margin):
    return with_margin(mean, margin).replace("+-", "±")


def _number(value):
    return "" if math.isnan(value) else f"{value:.4g}"


def _count(number, word):
    return f"{number:,} {word}{'s' * (number != 1)}"


def _range(values):
    least, mean, greatest = values
    return f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}, {mean:,.1f} in the mean"


def _shape(shape):
    return "" if shape is None else _tuple("?" if n is None else n for n in shape)


def _tuple(members):
    members = [str(member) for member in members]
    return f"({', '.join(members)}{',' * (len(members) == 1)})"


def _specs(specs):
    return "<br>".join(f"{_code(name)} {_rows(name, spec['shape'])} {spec['dtype']}" for name, spec in specs.items())


def _rows(name, shape):
    first = "supports" if name.startswith("support") else "queries"
    return _tuple([first, *("?" if n is None else n for n in shape[1:])])


def _tensors(specs):
    numbers = sum(math.prod(spec["shape"]) for spec in specs.values())
    return f"{_count(len(specs), 'tensor')} of {_count(numbers, 'number')}"
