"""ALFA: a small meta-learned net sets learning rates and weight decay at every inner step."""

import keras
import tensorflow as tf

from keras_maml.heads.base import LOWEST_BIAS_OF_FLOAT16
from keras_maml.learning_rules.base import LearningRule


@keras.saving.register_keras_serializable("keras_maml")
class ALFA(LearningRule):
    """Gradient descent whose rates and weight decay a meta-learned net sets, from where a task is.

    ```
    tau = (mean(p_1), ..., mean(p_N), mean(g_1), ..., mean(g_N))
    (a, b) = W_2 relu(W_1 tau + c_1) + c_2
    p_i <- keeps[index, i] * b_i * p_i - rates[index, i] * a_i * g_i
    ```

    for the N variables that adapt: a and b have N members each, W_1 and W_2 are 2N x 2N. All of it is meta-learned,
    a row of `keeps` and `rates` for every step. It starts next to `SGD`: `rates` at the learning rate, `keeps`, c_2 and
    so a and b at 1, but for a small random W_2, through which W_1 gets a gradient from the first outer step on. Steps
    beyond those of training use the last row.

    Args:
        learning_rate: where every rate starts, a positive number.
        clipnorm: greatest global norm of the inner gradient, or `None`.
        seed: of the initial W_1 and W_2, an integer; `None` for other ones in each new model.

    References:
        - Baik et al. 2020, "Meta-learning with adaptive hyperparameters", arXiv:2011.00209
    """

    learned = True
    learns_rates = True

    def __init__(self, learning_rate=0.01, clipnorm=None, seed=None, **kwargs):
        super().__init__(learning_rate, clipnorm, **kwargs)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"`seed` must be an integer or `None`. Received: seed={seed!r}.")
        self.seed = seed

    def build(self, variables, steps):
        count = len(variables)
        dtype = keras.backend.result_type(*{v.dtype for v in variables})
        wide, narrow = keras.initializers.GlorotUniform(self.seed), keras.initializers.RandomNormal(0, 1e-3, self.seed)

        def start(shape, dtype):
            return tf.constant(self.learning_rate, dtype, shape)  # Keras's `Constant` rounds to float32

        def weight(name, shape, initializer):
            return self.add_weight(name=name, shape=shape, dtype=dtype, initializer=initializer)

        self.rates = weight("rates", (steps, count), start)
        self.keeps = weight("keeps", (steps, count), "ones")
        self.hidden_kernel = weight("hidden_kernel", (2 * count, 2 * count), wide)
        self.hidden_bias = weight("hidden_bias", (2 * count,), "zeros")
        self.kernel = weight("kernel", (2 * count, 2 * count), narrow)
        self.bias = weight("bias", (2 * count,), "ones")

    def factors(self, params, gradients):
        """What the net says: `(a, b)`, `(N,)` each, factors of the rates and of what is kept of the weights."""
        dtype = self.rates.dtype
        tau = tf.stack([tf.cast(_mean(t), dtype) for t in (*params, *gradients)])
        hidden = tf.nn.relu(tf.linalg.matvec(self.hidden_kernel, tau) + self.hidden_bias)
        return tf.split(tf.linalg.matvec(self.kernel, hidden) + self.bias, 2)

    def step(self, params, gradients, state, index):
        row = tf.minimum(index, self.rates.shape[0] - 1)
        of_rates, of_keeps = self.factors(params, gradients)
        rates, keeps = self.rates[row] * of_rates, self.keeps[row] * of_keeps
        moved = [
            tf.cast(keeps[i], p.dtype) * p - tf.cast(rates[i], p.dtype) * g
            for i, (p, g) in enumerate(zip(params, gradients, strict=True))
        ]
        return moved, state

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def _mean(tensor):
    """Of what is a weight, and not the lowest bias of a class without supports, which steps may have raised."""
    return tf.reduce_mean(tf.where(tensor > 2 / 3 * LOWEST_BIAS_OF_FLOAT16, tensor, tf.zeros_like(tensor)))
