"""Weights by the part that they play in their layer: what `Algorithm(layers=...)` takes beside layers.

| role | weights |
|---|---|
| `biases` | every bias, and the offset of every normalisation |
| `normalization` | scale and offset of every normalisation |
| `lora` | the low-rank matrices of layers with `enable_lora` |
| `context_parameters` | the context of every `layers.ContextParameters` |

A role is found by layer objects and their attributes, never by names of variables.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_maml.layers import ContextParameters

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)


class _Kind(NamedTuple):
    """Args:
    of_layer: function from a layer to its weights of a role, `None` among them where it has none.
    remedy: what to do if a model has none.
    """

    of_layer: Callable
    remedy: str


def _attributes(*names):
    return lambda layer: [getattr(layer, name, None) for name in names]


KINDS = {
    "biases": _Kind(_attributes("bias", "beta"), "Make its layers with `use_bias=True`, or choose layers by name."),
    "normalization": _Kind(
        lambda layer: layer.trainable_variables if isinstance(layer, NORMALIZATIONS) else [],
        "Put `keras.layers.LayerNormalization` or the like into it, or choose layers by name.",
    ),
    "lora": _Kind(
        _attributes("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b"),
        "Call `layer.enable_lora(rank)` on its layers before the MetaModel is made.",
    ),
    "context_parameters": _Kind(
        lambda layer: [layer.context] if isinstance(layer, ContextParameters) and layer.built else [],
        "Put `keras_maml.layers.ContextParameters(size)` into it.",
    ),
}


@keras.saving.register_keras_serializable("keras_maml")
@dataclasses.dataclass(frozen=True)
class Role:
    """All trainable weights that play a part; see `KINDS`.

    Args:
        name: of the part.
    """

    name: str

    def __post_init__(self):
        if self.name not in KINDS:
            raise ValueError(f"`name` must be one of {list(KINDS)}. Received: name={self.name!r}.")

    def variables(self, model, layers, some=True):
        """The weights of this role, a list.

        Args:
            model: a built model.
            layers: all of its layers, inner ones too.
            some: whether there must be any.

        Raises:
            ValueError: if there are none and must be some, with the remedy.
        """
        trainable = {id(v) for v in model.trainable_variables}
        kind = KINDS[self.name]
        found = {id(v): v for layer in layers for v in kind.of_layer(layer) if id(v) in trainable}
        if some and not found:
            raise ValueError(
                f"Model '{model.name}' has no trainable weights for `keras_maml.{self.name}`. {kind.remedy} Its "
                f"trainable weights are {[v.path for v in model.trainable_variables]}."
            )
        return list(found.values())

    def __repr__(self):
        return f"keras_maml.{self.name}"

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


biases = Role("biases")
normalization = Role("normalization")
lora = Role("lora")
context_parameters = Role("context_parameters")
