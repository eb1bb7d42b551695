"""Writes conv4.npz: losses, logits and meta-gradients of a small conv net, by PyTorch in float64.

An oracle for the tests: the same mathematics in another framework, written out by hand, sharing no
code with the library. Run it again with

    python tests/oracles/make_conv4_oracle.py

which needs torch and NumPy only (written with torch 2.13, NumPy 2.4; the arrays agree between runs
to the last digits of float64).

The network, in Keras's layout: four blocks of [convolution 3x3, "same" padding, 4 filters, bias;
batch normalization, epsilon 1e-3; ReLU], a 2x2 max-pool at the end of the first two blocks, the
mean over pixels, a dense layer to 5 classes. A batch is normalised by its own mean and biased
variance, support and query each by their own, and gradients flow through both moments. Loss, inner
and outer: mean softmax cross-entropy from logits. Two tasks of 5 ways, 2 shots, 3 queries a class,
images of 8x8x1. The meta-gradient is that of the mean of the two query losses.

Keys, with `ii` the place of a variable, 00 to 17 (of each block in turn: kernel HWIO, bias, gamma,
beta; then dense kernel (in, out) and bias, which is the order of `model.trainable_variables`):

    weight_ii                       the weights before adaptation
    support_x  (2, 10, 8, 8, 1)     support_y  (2, 10), int64
    query_x    (2, 15, 8, 8, 1)     query_y    (2, 15), int64

and for each scenario of `SCENARIOS` below, as `<scenario>/<key>`:

    loss          ()                mean over tasks of query_loss
    query_loss    (2,)              query loss of each task after adaptation
    query_logits  (2, 15, 5)        logits on the queries after adaptation
    gradient_ii                     d loss / d weight_ii, for every variable, adapted or not
    steps, learning_rate, decay ()  settings; learning_rate where it is a constant
    rate_ii, rate_gradient_ii       learned step sizes and d loss / d rate_ii, if they are learned:
                                    shaped like the weight (meta_sgd), or (steps,) (layerwise_sgd)

With every gradient the script compares a central finite difference of the whole meta-objective in
a random direction of all that is learned, except for the first-order scenarios, which are not the
gradient of anything. It stops if the relative error reaches 1e-6.
"""

import dataclasses
import pathlib

import numpy as np
import torch
from torch.nn import functional

WAYS, SHOTS, QUERIES, TASKS = 5, 2, 3, 2
IMAGE_SIZE, FILTERS = 8, 4
POOLED = (True, True, False, False)  # one block each
EPSILON = 1e-3
HEAD = (16, 17)
BODY = tuple(range(16))


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One algorithm: `velocity <- decay * velocity + gradient`, `weight <- weight - rate * move`.

    `move` is the velocity, or `gradient + decay * velocity` with `nesterov`. With decay 0 both are
    plain gradient descent. `learned` is None (rate = learning_rate), "weight" (a rate for each
    entry of each variable) or "step" (a rate for each variable and step).
    """

    steps: int
    learning_rate: float = 0.1
    decay: float = 0.0
    nesterov: bool = False
    adapted: tuple = BODY + HEAD
    learned: str | None = None
    first_order: bool = False


SCENARIOS = {
    "maml_1": Scenario(steps=1, learning_rate=0.4),
    "maml_3": Scenario(steps=3),
    "fomaml": Scenario(steps=3, first_order=True),
    "meta_sgd": Scenario(steps=2, learned="weight"),
    "meta_sgd_first_order": Scenario(steps=2, learned="weight", first_order=True),
    "layerwise_sgd": Scenario(steps=3, learned="step"),
    "momentum": Scenario(steps=3, decay=0.9),
    "nesterov": Scenario(steps=3, decay=0.9, nesterov=True),
    "anil": Scenario(steps=3, adapted=HEAD),
    "boil": Scenario(steps=3, adapted=BODY),
}


def make_weights(random):
    """Weights in Keras's order and layouts; no bias, gamma or beta is left at 0 or 1."""
    weights, channels = [], 1
    for _ in POOLED:
        scale = np.sqrt(2 / (9 * channels))
        weights.append(random.normal(scale=scale, size=(3, 3, channels, FILTERS)))
        weights.append(random.normal(scale=0.2, size=FILTERS))
        weights.append(random.uniform(0.5, 1.5, size=FILTERS))
        weights.append(random.normal(scale=0.3, size=FILTERS))
        channels = FILTERS
    weights.append(random.normal(scale=0.7, size=(FILTERS, WAYS)))
    weights.append(random.normal(scale=0.2, size=WAYS))
    return [weight.round(4) for weight in weights]


def make_episodes(random):
    """Two tasks whose classes are noisy copies of random patterns, drawn anew for each task."""
    patterns = random.normal(size=(TASKS, WAYS, 1, IMAGE_SIZE, IMAGE_SIZE, 1))
    episodes = {}
    for part, count in (("support", SHOTS), ("query", QUERIES)):
        noise = random.normal(size=(TASKS, WAYS, count, IMAGE_SIZE, IMAGE_SIZE, 1))
        images = (patterns + noise).reshape(TASKS, WAYS * count, IMAGE_SIZE, IMAGE_SIZE, 1)
        labels = np.repeat(np.arange(WAYS), count)
        order = np.stack([random.permutation(WAYS * count) for _ in range(TASKS)])
        images = np.take_along_axis(images, order[:, :, None, None, None], axis=1)
        episodes[f"{part}_x"] = images.round(3)
        episodes[f"{part}_y"] = labels[order]
    return episodes


def make_rates(random, scenario, weights):
    """Initial step sizes around the learning rate, every entry different."""
    if scenario.learned is None:
        return []
    shapes = [w.shape if scenario.learned == "weight" else (scenario.steps,) for w in weights]
    low, high = 0.5 * scenario.learning_rate, 1.5 * scenario.learning_rate
    return [random.uniform(low, high, size=shape).round(4) for shape in shapes]


def forward(variables, images):
    """Logits of images (N, height, width, 1), normalised by the moments of these very images."""
    x = images.permute(0, 3, 1, 2)
    for block, pooled in enumerate(POOLED):
        kernel, bias, gamma, beta = variables[4 * block : 4 * block + 4]
        x = functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(variance + EPSILON)
        x = torch.relu(x * gamma[:, None, None] + beta[:, None, None])
        if pooled:
            x = functional.max_pool2d(x, 2)
    kernel, bias = variables[-2:]
    return x.mean(dim=(2, 3)) @ kernel + bias


def adapt(scenario, weights, rates, support_x, support_y):
    """The weights after the steps on the support, as a function of weights and rates."""
    variables = list(weights)
    velocity = [torch.zeros_like(weight) for weight in weights]
    for step in range(scenario.steps):
        loss = functional.cross_entropy(forward(variables, support_x), support_y)
        moving = [variables[i] for i in scenario.adapted]
        gradients = torch.autograd.grad(loss, moving, create_graph=True)
        for i, gradient in zip(scenario.adapted, gradients, strict=True):
            if scenario.first_order:
                gradient = gradient.detach()
            velocity[i] = scenario.decay * velocity[i] + gradient
            move = gradient + scenario.decay * velocity[i] if scenario.nesterov else velocity[i]
            if scenario.learned is None:
                rate = scenario.learning_rate
            else:
                rate = rates[i][step] if scenario.learned == "step" else rates[i]
            variables[i] = variables[i] - rate * move
    return variables


def meta_objective(scenario, weights, rates, episodes):
    """Query loss (tasks,) and query logits (tasks, queries, ways) after adaptation."""
    losses, logits = [], []
    for task in range(TASKS):
        support_x, support_y = episodes["support_x"][task], episodes["support_y"][task]
        variables = adapt(scenario, weights, rates, support_x, support_y)
        logits.append(forward(variables, episodes["query_x"][task]))
        losses.append(functional.cross_entropy(logits[-1], episodes["query_y"][task]))
    return torch.stack(losses), torch.stack(logits)


def finite_difference_error(random, scenario, weights, rates, episodes, gradients, step=1e-6):
    """Relative error of the gradients along a random direction of weights and rates together."""
    learned = [*weights, *rates]
    direction = [torch.from_numpy(random.normal(size=tuple(v.shape))) for v in learned]
    length = torch.sqrt(sum((d**2).sum() for d in direction))
    values = []
    for sign in (1, -1):
        moved = [
            (v.detach() + sign * step * d / length).requires_grad_()
            for v, d in zip(learned, direction, strict=True)
        ]
        losses, _ = meta_objective(scenario, moved[: len(weights)], moved[len(weights) :], episodes)
        values.append(losses.mean().item())
    expected = (values[0] - values[1]) / (2 * step)
    actual = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)) / length
    return abs(actual.item() - expected) / abs(expected)


def main():
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    weights = make_weights(random)
    episodes = make_episodes(random)
    arrays = {f"weight_{i:02}": weight for i, weight in enumerate(weights)} | episodes

    weights = [torch.from_numpy(weight).requires_grad_() for weight in weights]
    episodes = {key: torch.from_numpy(value) for key, value in episodes.items()}
    for name, scenario in SCENARIOS.items():
        # A generator of its own: the two Meta-SGD scenarios start from the same step sizes.
        rates = make_rates(np.random.default_rng(1), scenario, weights)
        rates = [torch.from_numpy(rate).requires_grad_() for rate in rates]
        losses, logits = meta_objective(scenario, weights, rates, episodes)
        gradients = torch.autograd.grad(losses.mean(), [*weights, *rates])

        report = f"{name:22} loss {losses.mean().item():.6f}"
        if not scenario.first_order:
            error = finite_difference_error(random, scenario, weights, rates, episodes, gradients)
            report += f"  relative error against finite differences {error:.1e}"
            if not error < 1e-6:
                raise SystemExit(f"{report}: must be below 1e-6")
        print(report)

        result = {
            "loss": losses.mean(),
            "query_loss": losses,
            "query_logits": logits,
            "steps": torch.tensor(scenario.steps),
            "decay": torch.tensor(scenario.decay, dtype=torch.float64),
        }
        if scenario.learned is None:
            result["learning_rate"] = torch.tensor(scenario.learning_rate, dtype=torch.float64)
        for i in range(len(weights)):
            result[f"gradient_{i:02}"] = gradients[i]
        for i, rate in enumerate(rates):
            result[f"rate_{i:02}"] = rate
            result[f"rate_gradient_{i:02}"] = gradients[len(weights) + i]
        arrays |= {f"{name}/{key}": value.detach().numpy() for key, value in result.items()}

    np.savez_compressed(pathlib.Path(__file__).with_name("conv4.npz"), **arrays)


if __name__ == "__main__":
    main()
