"""What is raced: a row is a net, an algorithm's settings and one batch of episodes, the same for all implementations.

Everything is made by NumPy from fixed seeds, so that all start from the same weights and see the same numbers. The
data are random: the time of a meta-step does not depend on them, and pixels that are all different leave no ties for
max-pooling to break one way here and another way there.
"""

import dataclasses

import numpy as np

from benchmarks import nets

WAYS = 5
OUTER_LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the benchmark.

    Args:
        name: as in `--rows`.
        title: as in tables.
        net: a `nets.Net`.
        tasks: tasks a batch, T.
        steps: inner steps, K.
        supports, queries: examples of one task, S and Q.
        learning_rate: of the inner steps, on the mean loss of the supports.
        steps_per_execution: meta-steps that `fit` runs at once.
    """

    name: str
    title: str
    net: nets.Net
    tasks: int
    steps: int
    supports: int
    queries: int
    learning_rate: float
    steps_per_execution: int = 1

    @property
    def regression(self):
        return self.net.kind == "mlp"

    def weights(self):
        """Initial weights by name, float64, in the layout and order of `nets.Net.parameters`."""
        random = np.random.default_rng(0)
        return {name: _initial(random, name, shape) for name, shape in self.net.parameters().items()}

    def episodes(self):
        """`{"support_x": (T, S, ...), "support_y": (T, S), "query_x": (T, Q, ...), "query_y": (T, Q)}`.

        Floating-point numbers are float64, tokens and labels int32; labels of a regression are `(T, S, 1)`.
        """
        random = np.random.default_rng(1)
        counts = {"support": self.supports, "query": self.queries}
        if self.regression:
            return _waves(random, self.tasks, counts)
        episodes = {}
        for part, count in counts.items():
            shape = (self.tasks, count, *self.net.input_shape)
            if self.net.vocabulary:
                episodes[f"{part}_x"] = random.integers(0, self.net.vocabulary, shape).astype("int32")
            else:
                episodes[f"{part}_x"] = random.normal(size=shape)
            labels = np.tile(np.repeat(np.arange(WAYS), count // WAYS), (self.tasks, 1))
            episodes[f"{part}_y"] = random.permuted(labels, axis=1).astype("int32")
        return episodes

    def flops(self):
        """Floating-point operations of one second-order meta-step: `T F [K S (9 - 5 f1) + Q (3 - f1)]`.

        F are those of the forward pass of one example, f1 is the first layer's share of them. A forward pass is 1 F, a
        gradient 2 F more, less f1 where no gradient of the inputs is needed. The outer gradient goes backwards through
        each inner step (forward and gradient, 3 F): 6 F more, less 4 f1.
        """
        forward, first = self.net.flops()
        share = first / forward
        inner = self.steps * self.supports * (9 - 5 * share)
        return self.tasks * forward * (inner + self.queries * (3 - share))


def _initial(random, name, shape):
    """Biases and offsets that are not 0, scales that are not 1: a peer that leaves one out is found out."""
    if name.endswith("scale"):
        return random.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        return 0.1 * random.normal(size=shape)
    if name.endswith("embedding"):
        return 0.5 * random.normal(size=shape)
    return random.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))


def _waves(random, tasks, counts):
    amplitude = random.uniform(0.1, 5.0, (tasks, 1, 1))
    phase = random.uniform(0.0, np.pi, (tasks, 1, 1))
    episodes = {}
    for part, count in counts.items():
        x = random.uniform(-5.0, 5.0, (tasks, count, 1))
        episodes |= {f"{part}_x": x, f"{part}_y": amplitude * np.sin(x - phase)}
    return episodes


def _sinusoid(steps):
    return Row(
        f"sinusoid_k{steps}",
        f"sinusoid, T=25, K={steps}",
        nets.Net("mlp", (1,), outputs=1, width=40),
        tasks=25,
        steps=steps,
        supports=10,
        queries=10,
        learning_rate=0.01,
        steps_per_execution=500,
    )


def _omniglot(kind, tasks, steps, queries):
    return Row(
        f"omniglot_{kind}_t{tasks}_k{steps}",
        f"Omniglot conv4-64 {kind}, T={tasks}, K={steps}, {queries} {'query' if queries == 1 else 'queries'} a class",
        nets.Net(kind, (28, 28, 1), outputs=WAYS, width=64),
        tasks=tasks,
        steps=steps,
        supports=WAYS,
        queries=WAYS * queries,
        learning_rate=0.4 if steps == 1 else 0.02,
    )


def _text(kind, vocabulary):
    return Row(
        f"text_{kind}",
        f"text, {'LSTM' if kind == 'lstm' else 'Transformer'}, T=8, K=1",
        nets.Net(kind, (32,), outputs=WAYS, width=64, vocabulary=vocabulary),
        tasks=8,
        steps=1,
        supports=25,
        queries=75,
        learning_rate=0.4 if kind == "lstm" else 0.1,
    )


_ALL = (
    _sinusoid(1),
    _sinusoid(5),
    *(_omniglot(kind, *setting) for kind in ("pooled", "strided") for setting in ((32, 1, 1), (8, 1, 15), (8, 5, 15))),
    Row(
        "mini_imagenet",
        "mini-ImageNet size conv4-32 pooled, T=4, K=5, 15 queries a class",
        nets.Net("pooled", (84, 84, 3), outputs=WAYS, width=32),
        tasks=4,
        steps=5,
        supports=WAYS,
        queries=75,
        learning_rate=0.01,
    ),
    _text("lstm", 8000),
    # A thousand words: with 8,000 the step would be that of the embedding's dense gradients, as above.
    _text("transformer", 1000),
)
ROWS = {row.name: row for row in _ALL}
