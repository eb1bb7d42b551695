"""Normalisation and pooling whose second derivatives are written by hand, to pass over memory less often.

TensorFlow differentiates `FusedBatchNormGradV3` by a composite of some thirty operations, each a pass over the
activations, and `MaxPoolGradGrad` looks for the greatest entry of every window again: together 40 % of a second-order
step of a convolutional net with max-pooling. The functions here give the same numbers.
"""

import tensorflow as tf


def batch_normalization(x, gamma, beta, epsilon):
    """Batch normalisation by the moments of `x`, to second order.

    ```
    y = gamma * z + beta,    z = (x - mean(x)) * r,    r = 1 / sqrt(variance(x) + epsilon)
    ```

    Args:
        x: float32 `(examples, height, width, channels)`.
        gamma: float32 `(channels,)`.
        beta: float32 `(channels,)`.
        epsilon: at least 1.001e-5, the least that cuDNN takes.

    Raises:
        LookupError: when a third derivative is taken.
    """
    return batch_normalization_and_moments(x, gamma, beta, epsilon)[0]


def batch_normalization_and_moments(x, gamma, beta, epsilon):
    """`batch_normalization` with the moments, `(y, mean, variance)`; no gradient is taken through the latter two."""

    @tf.custom_gradient
    def forward(x, gamma, beta):
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=tf.zeros([0]), variance=tf.zeros([0]), epsilon=epsilon, is_training=True
        )
        n = tf.cast(tf.size(x) // tf.size(gamma), x.dtype)
        variance = outputs.batch_variance * ((n - 1) / n)  # that output is Bessel-corrected
        gradient = lambda dy, *_: _normalization_gradient(dy, x, gamma, outputs, epsilon)  # noqa: E731
        return (outputs.y, outputs.batch_mean, variance), gradient

    return forward(x, gamma, beta)


def _normalization_gradient(dy, x, gamma, outputs, epsilon):
    # What the forward pass has left are arguments, too: TensorFlow looks for variables among all that the functions
    # below are computed from, up to their arguments. Where something else is captured, that is the whole step so far.
    saved = outputs[1:]  # mean, variance, and what the fused gradient asks for

    def fused(dy, x, gamma, saved):
        gradients = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy,
            x=x,
            scale=gamma,
            reserve_space_1=saved[2],
            reserve_space_2=saved[3],
            reserve_space_3=saved[4],
            epsilon=epsilon,
            is_training=True,
        )
        return gradients.x_backprop, gradients.scale_backprop, gradients.offset_backprop

    # With means over the examples and pixels of a channel, and the cotangents u of dx, a of dgamma, b of dbeta:
    #   dx = gamma r (dy - mean(dy) - z q),   q = mean(dy z) = dgamma / n,   mean(dy) = dbeta / n
    #   F = sum(u dx) = gamma r n (w - mean(u) mean(dy) - p q),   p = mean(u z),   w = mean(u dy)
    # and since dr = -r^2 mean(z dx') and dz = r (dx' - mean(dx') - z mean(z dx')) for a change dx' of x,
    #   dF/dx = -gamma r^2 (q (u - mean(u)) + p (dy - mean(dy)) + z (w - mean(u) mean(dy) - 3 p q)).
    # The map from dy to dx is symmetric, so that of u is the fused operation again, which also gives n p and n mean(u).
    @tf.custom_gradient
    def second(u, a, b, dy, x, gamma, dgamma, dbeta, *saved):
        mean, variance = saved[:2]
        through_dx, sum_uz, sum_u = fused(u, x, gamma, saved)
        n = tf.cast(tf.size(x) // tf.size(gamma), x.dtype)
        mean_dy, q, mean_u, p = dbeta / n, dgamma / n, sum_u / n, sum_uz / n
        w = tf.reduce_sum(u * dy, [0, 1, 2]) / n
        r = tf.math.rsqrt(variance * ((n - 1) / n) + epsilon)  # that output is Bessel-corrected
        covariance = w - mean_u * mean_dy - p * q
        of_u = -gamma * r * r * q
        of_dy = a * r - gamma * r * r * p
        of_x = -r * (gamma * r * r * (covariance - 2 * p * q) + a * r * q)
        to_x = u * of_u + dy * of_dy + (x * of_x - (mean * of_x + mean_u * of_u + mean_dy * of_dy))
        to_dy = through_dx + (x * (a * r) + (b - a * r * mean))
        return (to_dy, to_x, r * n * covariance), _refuse("batch normalisation")

    @tf.custom_gradient
    def first(dy, x, gamma, *saved):
        dx, dgamma, dbeta = fused(dy, x, gamma, saved)

        def gradient(u, a, b):
            return *second(u, a, b, dy, x, gamma, dgamma, dbeta, *saved), *(None for _ in saved)

        return (dx, dgamma, dbeta), gradient

    return first(dy, x, gamma, *saved)


def max_pooling(x, size):
    """Max-pooling over windows that do not overlap, without padding, to second order.

    Args:
        x: float32 `(examples, height, width, channels)`.
        size: `(height, width)` of a window, which is also the stride.

    Raises:
        LookupError: when a third derivative is taken.
    """
    window = {"ksize": [1, *size, 1], "strides": [1, *size, 1], "padding": "VALID"}

    def spread(values, x, y):
        """Values `(examples, height / size, ...)` put where the greatest entry of each window is, zeros elsewhere."""
        return tf.raw_ops.MaxPoolGrad(orig_input=x, orig_output=y, grad=values, **window)

    @tf.custom_gradient
    def collect(u, x, y):
        # Where windows do not overlap, what stands at the greatest entry is the sum of a window that is 0 elsewhere.
        chosen = u * spread(tf.ones_like(y), x, y)
        total = tf.raw_ops.AvgPool(value=chosen, **window) * float(size[0] * size[1])
        return total, _refuse("max-pooling")

    @tf.custom_gradient
    def first(dy, x, y):
        return spread(dy, x, y), lambda u: (collect(u, x, y), None, None)

    @tf.custom_gradient
    def forward(x):
        y = tf.raw_ops.MaxPool(input=x, **window)
        return y, lambda dy: first(dy, x, y)

    return forward(x)


def _refuse(name):
    def gradient(*_):
        raise LookupError(f"{name} has no third derivative")

    return gradient
