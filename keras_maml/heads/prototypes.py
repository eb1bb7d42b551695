"""Output layers that start from the means of the classes."""

import keras
import tensorflow as tf

from keras_maml.arguments import check_positive
from keras_maml.heads.base import ComputedHead


@keras.saving.register_keras_serializable("keras_maml")
class PrototypeHead(ComputedHead):
    """The output layer starts from the means `mu_c` of the support features of each class c, its inputs.

    ```
    w_c = 2 scale mu_c,    b_c = -scale |mu_c|^2        # "euclidean": logits scale (|f|^2 - |f - mu_c|^2)
    w_c = scale nu_c,      b_c = 0                      # "cosine": logits scale |f| cos(f, nu_c)
    ```

    where `nu_c` is the mean of the features brought to length 1, itself brought to length 1. As `|f|^2` is the same
    for all classes, `Algorithm(..., steps=0, start=PrototypeHead())` is a prototypical network; with steps it is
    Proto-MAML. For logits of cosines alone put a `keras.layers.UnitNormalization` before the output layer.

    A class without supports has weights of 0 and the lowest bias: -1e9, or -3e4 where features are float16. The output
    layer must be a `Dense` of as many units as tasks have classes at most; `MetaModel.with_ways` gives it others.

    Args:
        distance: `"euclidean"` or `"cosine"`.
        scale: positive; default 1 for `"euclidean"`, 10 for `"cosine"`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        - Snell et al. 2017, "Prototypical networks for few-shot learning", arXiv:1703.05175
        - with steps: Triantafillou et al. 2020, "Meta-Dataset: a dataset of datasets for learning to learn from few
          examples", arXiv:1903.03096
        - `"cosine"`: Gidaris and Komodakis 2018, "Dynamic few-shot visual learning without forgetting",
          arXiv:1804.09458
    """

    def __init__(self, distance="euclidean", scale=None, **kwargs):
        super().__init__(**kwargs)
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"`distance` must be 'euclidean' or 'cosine'. Received: distance={distance!r}.")
        check_positive("scale", scale, optional=True)
        self.distance = distance
        self.scale = scale

    def compute(self, features, y, weight):
        cosine = self.distance == "cosine"
        scale = self.scale or (10.0 if cosine else 1.0)
        if cosine:
            features = tf.math.l2_normalize(features, -1)
        members = y * weight[:, tf.newaxis]
        counts = tf.reduce_sum(members, 0)
        means = tf.matmul(members, features, transpose_a=True) / tf.where(counts > 0, counts, 1)[:, tf.newaxis]
        if cosine:
            return tf.transpose(scale * tf.math.l2_normalize(means, -1)), tf.zeros_like(counts)
        return tf.transpose(2 * scale * means), -scale * tf.reduce_sum(tf.square(means), -1)

    def get_config(self):
        return {**super().get_config(), "distance": self.distance, "scale": self.scale}
