"""Low-rank matrices in files: Keras writes the sum of a kernel and its low-rank part, and reads zeros for that."""

import keras
import tensorflow as tf

from keras_maml.selection import flatten_layers

ATTRIBUTES = (("_kernel", "lora_kernel_a", "lora_kernel_b"), ("_embeddings", "lora_embeddings_a", "lora_embeddings_b"))


class LoraWeights(keras.layers.Layer):
    """Saves the low-rank matrices A and B of a model's layers, and takes them apart from the kernel on loading.

    Keras makes one kernel of both in every file, for use. A model that adapts A and B would not adapt at all where both
    are 0: each has a gradient through the other alone.

    It must be loaded after the layers of the model, so that a `MetaModel` makes it its last attribute. `layer._kernel`
    and `layer._embeddings` are private (Keras 3.15): the public `kernel` is the sum.

    Args:
        model: a built model.
    """

    def __init__(self, model, **kwargs):
        super().__init__(**kwargs)
        self.built = True
        # In a function, so that Keras does not take the variables of the model for those of this layer.
        self._parts = lambda: list(parts_of(model))

    def save_own_variables(self, store):
        for n, (_, a, b, _) in enumerate(self._parts()):
            store[f"{n}_a"], store[f"{n}_b"] = a.numpy(), b.numpy()

    def load_own_variables(self, store):
        for n, (kernel, a, b, scale) in enumerate(self._parts()):
            if f"{n}_a" not in store.keys():
                return  # a file of before, or weights of the base model alone
            a.assign(store[f"{n}_a"])
            b.assign(store[f"{n}_b"])
            kernel.assign_sub(tf.cast(scale * tf.matmul(a, b), kernel.dtype))


def parts_of(model):
    """`(kernel, A, B, scale)` of every layer with `enable_lora` whose kernel is not quantised."""
    # `flatten_layers` lists a shared layer once for each owner.
    for layer in {id(layer): layer for layer in flatten_layers(model)}.values():
        for names in ATTRIBUTES:
            kernel, a, b = (getattr(layer, name, None) for name in names)
            if b is not None and kernel.dtype == a.dtype:
                yield kernel, a, b, layer.lora_alpha / layer.lora_rank
