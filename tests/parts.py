"""The parts of an algorithm, which of them go together, and the table of it in docs/parts.md.

    python tests/parts.py            # every pair of parts trains or is refused; a minute
    python tests/parts.py --all      # every combination; an hour
    python tests/parts.py --write    # and writes docs/parts.md

What is refused is said here a second time, in words of this file: `refusal` shares no code with the library.
"""

import argparse
import itertools
import pathlib

import keras
import numpy as np

import keras_maml
from keras_maml import layers, learning_rules, meta_gradients

WAYS, STEPS = 3, 2
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "parts.md"

RULES = {
    "SGD": lambda: learning_rules.SGD(0.1),
    "SGD, schedule": lambda: learning_rules.SGD(keras.optimizers.schedules.CosineDecay(0.1, 4)),
    "Momentum": lambda: learning_rules.Momentum(0.1),
    "ProximalSGD": lambda: learning_rules.ProximalSGD(0.1, 2.0),
    "Adam": lambda: learning_rules.Adam(0.01),
    "AdamW": lambda: learning_rules.AdamW(0.01),
    "RMSprop": lambda: learning_rules.RMSprop(0.01),
    "Adagrad": lambda: learning_rules.Adagrad(0.01),
    "LearnedSGD": lambda: learning_rules.LearnedSGD(0.1),
    "LayerwiseSGD": lambda: learning_rules.LayerwiseSGD(0.1, positive=True),
    "MetaCurvature": lambda: learning_rules.MetaCurvature(0.1),
    "ALFA": lambda: learning_rules.ALFA(0.1, seed=0),
}
ESTIMATORS = {
    "Unrolled": meta_gradients.Unrolled,
    "Unrolled, truncated": lambda: meta_gradients.Unrolled(truncate=1),
    "Unrolled, rematerialised": lambda: meta_gradients.Unrolled(rematerialize=True),
    "FirstOrder": meta_gradients.FirstOrder,
    "MultiStep": lambda: meta_gradients.MultiStep(multi_step_share=0.5),
    "SharpnessAware": lambda: meta_gradients.SharpnessAware(meta_gradients.Unrolled()),
    "EvolutionStrategies": lambda: meta_gradients.EvolutionStrategies(samples=2),
    "ParameterDifference": meta_gradients.ParameterDifference,
    "Implicit": lambda: meta_gradients.Implicit(3),
    "Implicit, Neumann": lambda: meta_gradients.Implicit(3, solver="neumann"),
}
LAYERS = {
    "all": lambda: None,
    "head": lambda: "head",
    "all but the head": lambda: keras_maml.exclude("head"),
    "normalisation": lambda: keras_maml.normalization,
    "biases": lambda: keras_maml.biases,
}
STARTS = {
    "theta": lambda: None,
    "ZeroHead": keras_maml.ZeroHead,
    "PrototypeHead": keras_maml.PrototypeHead,
    "RidgeHead": keras_maml.RidgeHead,
    "SVMHead": keras_maml.SVMHead,
}
STATISTICS = {
    "batch": lambda: layers.BatchNormalization("batch", name="normalization"),
    "support": lambda: layers.BatchNormalization("support", name="normalization"),
    "moving": lambda: layers.BatchNormalization("moving", name="normalization"),
    "per step": lambda: layers.PerStepBatchNormalization(STEPS, name="normalization"),
}
AXES = {
    "rule": RULES,
    "meta-gradient": ESTIMATORS,
    "choice of layers": LAYERS,
    "start": STARTS,
    "statistics": STATISTICS,
}

LEARNED = {"LearnedSGD", "LayerwiseSGD", "MetaCurvature", "ALFA"}
UNDIFFERENTIATED = {"ParameterDifference", "Implicit", "Implicit, Neumann"}
# What the error must say, and what the page says.
REASONS = {
    1: ("gives no gradient for weights that do not adapt", "The estimator has a gradient for adapting weights alone."),
    2: ("gives no gradient for learned step sizes", "The estimator has no gradient for what a rule learns."),
    3: ("gives no gradient through a start that depends", "The estimator has no gradient through a start."),
    4: ("needs `rule=ProximalSGD", "The estimator differentiates the minimum that `ProximalSGD` goes to."),
    5: ("so that they would never change", "What starts from 0 in every task must adapt, or it stays 0."),
    6: ("No weight of model", "Weights of normalisation for each inner step never adapt: nothing would be left."),
}
# Parts that go with every other one but for what the other one is.
NEUTRAL = ("ProximalSGD", "Unrolled", "all", "theta", "batch")


def refusal(rule, estimator, adapts, start, statistics):
    """The number of the reason why a combination is refused, or `None`."""
    if estimator in UNDIFFERENTIATED:
        if adapts != "all":
            return 1
        if rule in LEARNED:
            return 2
        if start not in ("theta", "ZeroHead"):
            return 3
        if estimator.startswith("Implicit") and rule != "ProximalSGD":
            return 4
        if statistics == "per step":
            return 1
    if adapts == "normalisation" and statistics == "per step":
        return 6
    return 5 if start == "ZeroHead" and adapts in ("all but the head", "normalisation", "biases") else None


def combinations():
    """All of them, as tuples of names in the order of `AXES`."""
    return list(itertools.product(*AXES.values()))


def covering(refused=False):
    """Few legal combinations in which every pair of parts stands that occurs in a legal one; or the same of refused
    ones, every part with every reason that it occurs with."""
    members = [c for c in combinations() if (refusal(*c) is not None) == refused]
    places = list(itertools.combinations(range(len(AXES)), 2))
    pairs = {c: {(i, j, c[i], c[j]) for i, j in places} for c in members}
    if refused:
        pairs = {c: {(refusal(*c), part) for part in c} for c in members}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(members, key=lambda c: len(pairs[c] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def make(combination):
    """The `MetaModel`, compiled.

    Raises:
        ValueError: if it is refused.
    """
    rule, estimator, adapts, start, statistics = (
        axis[name]() for axis, name in zip(AXES.values(), combination, strict=True)
    )
    algorithm = keras_maml.Algorithm(rule, estimator, STEPS, layers=adapts, start=start)
    # No bias before the normalisation, whose gradient would be 0.
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, use_bias=False),
            statistics,
            keras.layers.Activation("tanh"),
            keras.layers.Dense(WAYS, name="head"),
        ]
    )
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(random.normal(0.2, 0.5, variable.shape))
    meta_model = keras_maml.MetaModel(model, algorithm, task_mapping="unrolled")
    meta_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return meta_model


def episode_batch(tasks=2, shots=2):
    random = np.random.default_rng(1)
    labels = np.tile(np.arange(WAYS, dtype="int32"), (tasks, shots))
    x = random.normal(labels[..., np.newaxis], 1.0, (2, *labels.shape, 4)).astype("float32")
    return {"support_x": x[0], "support_y": labels, "query_x": x[1]}, labels


def faults(combination):
    """Names of meta-learned variables without a gradient, or with one that is 0 or not finite."""
    keras.utils.set_random_seed(0)
    meta_model = make(combination)
    _, _, gradients = meta_model.meta_gradients(*episode_batch())
    found = []
    for variable, gradient in zip(meta_model.trainable_variables, gradients, strict=True):
        if gradient is None or not np.isfinite(gradient).all() or not np.abs(gradient).max() > 0:
            found.append(variable.path)
    return found


def verdict(combination):
    """`"trains"`, or why not."""
    expected = refusal(*combination)
    try:
        found = faults(combination)
    except ValueError as error:
        if expected is not None and REASONS[expected][0] in str(error):
            return f"refused ({expected})"
        return f"refused, and should {'train' if expected is None else 'say ' + REASONS[expected][0]}: {error}"
    if expected is not None:
        return "trains, and should be refused: " + REASONS[expected][0]
    return f"no gradient for {found}" if found else "trains"


def table():
    """docs/parts.md."""
    every, names = combinations(), list(AXES)
    legal = sum(refusal(*c) is None for c in every)
    lines = [
        "# Which parts go together",
        "",
        "An algorithm has a rule, a meta-gradient, a choice of layers and a start, and its model normalises by",
        f"some statistics. Of the {len(every):,} combinations below {legal:,} train: every meta-learned variable gets",
        "a gradient that is finite and not 0. The others are refused when the `Algorithm` or the `MetaModel` is",
        "made, for a pair that does not go together: a number is the reason, below. `python tests/parts.py --all`",
        "tries every combination; the tests try some in which every pair stands.",
        "",
    ]
    for i, j in itertools.combinations(range(len(AXES)), 2):
        rows, columns = list(AXES[names[i]]), list(AXES[names[j]])
        cells = [[_of_pair(i, j, a, b) for b in columns] for a in rows]
        if {cell for row in cells for cell in row} == {"yes"}:
            lines += [f"Any {names[i]} goes with any {names[j]}.", ""]
            continue
        lines += [f"| {names[i]} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {a} | {' | '.join(row)} |" for a, row in zip(rows, cells, strict=True)] + [""]
    return "\n".join([*lines, *(f"{number}. {why}" for number, (_, why) in REASONS.items())]) + "\n"


def _of_pair(i, j, a, b):
    combination = list(NEUTRAL)
    combination[i], combination[j] = a, b
    reason = refusal(*combination)
    return "yes" if reason is None else f"no ({reason})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every combination")
    parser.add_argument("--write", action="store_true", help="writes docs/parts.md")
    arguments = parser.parse_args()
    bad = 0
    for combination in combinations() if arguments.all else covering() + covering(refused=True):
        found = verdict(combination)
        if found != "trains" and not found.startswith("refused ("):
            bad += 1
            print(*combination, found, sep=" | ", flush=True)
        keras.backend.clear_session()
    print(f"{bad} are not as they should be")
    if arguments.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
