"""What is compared with what: every setting of every row stands here.

A `Row` names its algorithm and net; `make_algorithm` and `make_net` make them when the row is run, so that a row that
cannot be made stops nobody else.
"""

import dataclasses

import keras

import keras_maml
from keras_maml import learning_rules, meta_gradients
from keras_maml.recipes import networks

IMAGE = (28, 28, 1)


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm with its settings, all of them JSON.

    Args:
        title: for tables.
        algorithm: the name of a preset of `keras_maml`, `"composed"`, or of a baseline: `"fine_tuning"`,
            `"nearest_centroid"`, `"joint"`.
        settings: its arguments.
        net: a key of `NETS`.
        net_settings: its arguments beside ways.
        training: `"episodes"`, `"classes"` (one classifier of all training classes), `"joint"` (examples of episodes),
            or `"none"`.
        optimizer: `"adam"` or `"sgd"`.
        rate: outer learning rate at the start.
        schedule: `"cosine"` (to a hundredth of `rate`), `"linear"` (to 0) or `"constant"`, over the seconds of the run.
        tasks: a batch.
        queries: a class, in training.
        seeds: of the runs.
    """

    title: str
    algorithm: str
    settings: dict
    net: str = "conv4"
    net_settings: dict = dataclasses.field(default_factory=dict)
    training: str = "episodes"
    optimizer: str = "adam"
    rate: float = 4e-3
    schedule: str = "cosine"
    tasks: int = 32
    queries: int = 5
    seeds: tuple = (0,)

    def to_dict(self):
        """All but what only says which runs to make, and how to call them."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("title", "seeds")}


@dataclasses.dataclass(frozen=True)
class Suite:
    """Rows that share their test tasks and their time.

    Args:
        title: for tables.
        ways, shots: of all tasks.
        minutes: of training.
        reference: the row that others are compared with.
        rows: `{name: Row}`.
    """

    title: str
    ways: int
    shots: int
    minutes: float
    reference: str
    rows: dict


def steps_of(learning_rate, steps, evaluation_steps=None, **others):
    """Settings of a preset."""
    return {"learning_rate": learning_rate, "steps": steps, "evaluation_steps": evaluation_steps, **others}


def _algorithm(learning_rate, steps, evaluation_steps, rule="SGD", estimator="Unrolled", **settings):
    """What no preset is: `settings` are those of the estimator."""
    rule, estimator = getattr(learning_rules, rule)(learning_rate), getattr(meta_gradients, estimator)(**settings)
    return keras_maml.Algorithm(rule, estimator, steps, evaluation_steps)


def make_algorithm(row):
    """The `Algorithm` of a row."""
    make = _algorithm if row.algorithm == "composed" else getattr(keras_maml, row.algorithm)
    return make(**row.settings)


def _per_step(ways, steps, momentum=0.9, **settings):
    net = networks.conv4(IMAGE, ways)
    for number in range(1, 5):
        # As with the authors. Keras's 0.99 remembers a hundred steps, which is long in a short run.
        net.get_layer(f"normalization_{number}").momentum = momentum
    return keras_maml.layers.per_step_normalization(net, steps, **settings)


def _context(ways, size):
    # After the third block, as in the paper.
    layers = networks.conv4(IMAGE, ways).layers
    place = [layer.name for layer in layers].index("normalization_3") + 1
    context = keras_maml.layers.ContextParameters(size, mode="modulate", name="context")
    return keras.Sequential([keras.Input(IMAGE, dtype="uint8"), *layers[:place], context, *layers[place:]])


NETS = {
    "conv4": lambda ways: networks.conv4(IMAGE, ways),
    "per_step": _per_step,
    "context": _context,
    "pixels": lambda ways: networks.pixels(IMAGE),
}


def make_net(row, ways):
    """The net of a row, freshly initialised; `ways=None`: its body."""
    return NETS[row.net](ways, **row.net_settings)


THREE = (0, 1, 2)
_TWO_STEPS = steps_of(0.4, 2, 2, first_order_share=None)
_PER_STEP = {"net": "per_step", "net_settings": {"steps": 2, "statistics": "batch"}, "tasks": 16}
CLASSIFIER = {"training": "classes", "tasks": 1}

FIVE_WAY = {
    "maml": Row("MAML", "MAML", steps_of(0.4, 1, 3), seeds=THREE),
    "fomaml": Row("FOMAML", "FOMAML", steps_of(0.5, 3, 5)),
    # The outer step moves a share of the way to phi, which is adapted on supports and queries: one drawing a class is
    # too little for it.
    "reptile": Row(
        "Reptile",
        "Reptile",
        steps_of(0.3, 5, 20, data="episode"),
        optimizer="sgd",
        rate=1.0,
        schedule="linear",
        tasks=5,
        queries=10,
    ),
    "meta_sgd": Row("Meta-SGD", "MetaSGD", steps_of(0.4, 1, 1)),
    "anil": Row("ANIL", "ANIL", steps_of(1.0, 5, 5)),
    "boil": Row("BOIL", "BOIL", steps_of(0.4, 1, 1)),
    "imaml": Row("iMAML", "IMAML", steps_of(0.4, 5, 5, strength=0.5, iterations=1), tasks=8),
    # As the authors' programme was run for their figures: moments of the very batch, no first order at first.
    "maml_plus_plus": Row("MAML++", "MAMLPlusPlus", _TWO_STEPS, **_PER_STEP, seeds=THREE),
    "maml_plus_plus_first_order": Row(
        "MAML++, first order at first", "MAMLPlusPlus", {**_TWO_STEPS, "first_order_share": 0.5}, **_PER_STEP
    ),
    # As in the paper's text: queries are judged by moving moments of their step, one at a time if need be.
    "maml_plus_plus_statistics": Row(
        "MAML++, statistics of each step", "MAMLPlusPlus", _TWO_STEPS, **{**_PER_STEP, "net_settings": {"steps": 2}}
    ),
    "proto_maml": Row("Proto-MAML", "ProtoMAML", steps_of(0.4, 1, 3)),
    "protonet": Row("ProtoNet", "ProtoNet", {}),
    "r2d2": Row("R2-D2", "R2D2", {}),
    "metaoptnet": Row("MetaOptNet-SVM", "MetaOptNet", {}),
    "meta_curvature": Row("Meta-Curvature", "composed", steps_of(0.4, 1, 3, rule="MetaCurvature")),
    "cavia": Row("CAVIA", "CAVIA", steps_of(1.0, 2, 2), net="context", net_settings={"size": 100}),
    "pretrained": Row(
        "pretrained, fine-tuned", "fine_tuning", {"learning_rate": 0.1, "steps": 20, "head": False}, **CLASSIFIER
    ),
    "pretrained_head": Row(
        "pretrained, new head", "fine_tuning", {"learning_rate": 0.3, "steps": 20, "head": True}, **CLASSIFIER
    ),
    "centroid": Row("pretrained, nearest centroid", "nearest_centroid", {"distance": "cosine"}, **CLASSIFIER),
    "joint": Row("joint training, fine-tuned", "joint", {"learning_rate": 0.1, "steps": 20}, training="joint"),
    "pixels": Row(
        "pixels, nearest centroid", "nearest_centroid", {"distance": "cosine"}, net="pixels", training="none"
    ),
}

WIDE = {"tasks": 16, "queries": 2}
TWENTY_WAY = {
    name: dataclasses.replace(FIVE_WAY[name], **{**WIDE, **changes})
    for name, changes in {
        "maml": {},
        "maml_plus_plus": {"tasks": 8},
        "maml_plus_plus_first_order": {"tasks": 8},
        "maml_plus_plus_statistics": {"tasks": 8},
        "proto_maml": {},
        "protonet": {},
        "r2d2": {},
        "metaoptnet": {},
        "meta_curvature": {},
        "meta_sgd": {},
    }.items()
}

# The base has a constant outer rate, as the cosine is one of the ideas. Three short runs, not a long one: seeds differ
# as much as ideas do. Its rates are the better of two each, in runs of a minute.
BASE = {**WIDE, "tasks": 8, "rate": 3e-3, "schedule": "constant", "seeds": THREE}
COSINE = {**BASE, "schedule": "cosine"}
FIVE_STEPS = steps_of(0.4, 5, 5)
ABLATION = {
    "base": Row("MAML, 5 steps", "MAML", FIVE_STEPS, **BASE),
    "multi_step": Row(
        "and multi-step loss", "composed", {**FIVE_STEPS, "estimator": "MultiStep", "multi_step_share": 0.1}, **BASE
    ),
    "derivative_order": Row("and first order at first", "composed", {**FIVE_STEPS, "first_order_share": 0.5}, **BASE),
    "learned_rates": Row("and learned rates", "composed", {**FIVE_STEPS, "rule": "LayerwiseSGD"}, **BASE),
    "per_step_statistics": Row(
        "and statistics of each step",
        "MAML",
        FIVE_STEPS,
        net="per_step",
        net_settings={"steps": 5, "weights_per_step": False},
        **BASE,
    ),
    "per_step_weights": Row(
        "and normalisation weights of each step",
        "MAML",
        FIVE_STEPS,
        net="per_step",
        net_settings={"steps": 5, "statistics": "batch"},
        **BASE,
    ),
    "cosine": Row("and cosine of the outer rate", "MAML", FIVE_STEPS, **COSINE),
    "all": Row("all six: MAML++", "MAMLPlusPlus", FIVE_STEPS, net="per_step", net_settings={"steps": 5}, **COSINE),
    "all_transductive": Row(
        "all but statistics of each step",
        "MAMLPlusPlus",
        FIVE_STEPS,
        net="per_step",
        net_settings={"steps": 5, "statistics": "batch"},
        **COSINE,
    ),
}

SUITES = {
    "omniglot5": Suite("Omniglot 5-way 1-shot", 5, 1, 5.0, "maml", FIVE_WAY),
    "omniglot20": Suite("Omniglot 20-way 1-shot", 20, 1, 10.0, "maml", TWENTY_WAY),
    "ablation": Suite("Ideas of MAML++, Omniglot 20-way 1-shot", 20, 1, 3.0, "base", ABLATION),
}
