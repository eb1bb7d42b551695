"""Who races: one module a framework, one class an implementation, all with the interface of `Implementation`."""

import dataclasses
import importlib


class Implementation:
    """One way to run meta-steps of a row.

    The constructor is timed, as part of the first step: everything that is done once for a net belongs there or in
    the first `run`.

    Args:
        row: a `rows.Row`.
        weights: initial weights by name, NumPy arrays of the wanted precision.
        episodes: as `Row.episodes` gives them, floating-point numbers of the wanted precision.
    """

    steps_at_once = 1  # `run` makes multiples of it

    @classmethod
    def prepare(cls, row):
        """Sets what must be set before the framework starts: threads, mostly. Not timed."""

    def meta_gradient(self, episodes):
        """The gradient of the mean query loss over other episodes: by name, NumPy arrays shaped like `weights`.

        Only asked for before any `run`, so it is that at the initial weights.
        """
        raise NotImplementedError

    def run(self, steps):
        """Makes meta-steps: each a meta-gradient and an update by Adam. Returns when the last one is done."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an implementation is, and what it is in one line."""

    title: str
    module: str
    attribute: str
    packages: tuple
    description: str
    normalised_only: bool = False  # whether it differs from another one only where a net normalises

    def applies(self, row):
        return not self.normalised_only or any(name.endswith("scale") for name in row.net.parameters())

    def load(self):
        """Imports the class; raises ImportError where a package is missing."""
        module = importlib.import_module(f"benchmarks.implementations.{self.module}")
        return getattr(module, self.attribute)


OURS = "keras_maml"
ENTRIES = {
    OURS: Entry("keras_maml", "keras_maml_fit", "KerasMaml", ("tensorflow", "keras"), "`MetaModel.fit`"),
    "torch_loop": Entry(
        "torch loop",
        "torch_peers",
        "TorchLoop",
        ("torch",),
        "learn2learn's way: a loop over tasks, `torch.autograd.grad(create_graph=True)`",
    ),
    "higher": Entry("higher", "torch_peers", "Higher", ("torch", "higher"), "`higher.innerloop_ctx`"),
    "torchopt": Entry(
        "TorchOpt", "torch_peers", "TorchOpt", ("torch", "torchopt"), "`torchopt.MetaSGD`, as in its MAML example"
    ),
    "torch_vmap": Entry(
        "torch vmap",
        "torch_peers",
        "TorchVmap",
        ("torch",),
        "`torch.func.grad` and `vmap` over tasks, normalisations spelt out",
    ),
    "torch_vmap_stock": Entry(
        "torch vmap, stock layers",
        "torch_peers",
        "TorchVmapStock",
        ("torch",),
        "the same with PyTorch's own normalisation layers",
        normalised_only=True,
    ),
    "jax": Entry("JAX", "jax_peer", "Jax", ("jax", "optax"), "jitted `vmap` of `value_and_grad`, Optax"),
    "keras_eager": Entry(
        "Keras eager",
        "keras_today",
        "KerasEager",
        ("tensorflow", "keras"),
        "what a Keras user writes today: nested tapes, `stateless_call`, a loop over tasks",
    ),
    "keras_function": Entry(
        "Keras tf.function", "keras_today", "KerasFunction", ("tensorflow", "keras"), "the same under `tf.function`"
    ),
}
