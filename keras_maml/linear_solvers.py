"""Linear algebra on flat lists of tensors, for meta-gradients that solve a linear system.

A vector is a list of tensors, aligned with the parameters; a matrix is a function of such a vector.
"""

import tensorflow as tf


def dot(a, b):
    """Inner product of two lists of tensors: a scalar."""
    return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b, strict=True)])


def hessian_vector_product(loss, params, vector, scale=1.0):
    """`H v`, where `H` is the Hessian of `loss` at `params`; `H` is never formed.

    Args:
        loss: function of a list of tensors, returning a scalar.
        params: list of tensors.
        vector: list of tensors, shaped as `params`.
        scale: the loss is multiplied by it inside and the result divided (float16 layers underflow otherwise).

    Returns:
        A list of tensors, shaped as `params`; zeros for parameters that the loss is linear in.

    References:
        - Pearlmutter 1994, "Fast exact multiplication by the Hessian", Neural Computation 6
    """
    with tf.GradientTape() as outer:
        outer.watch(params)
        with tf.GradientTape() as inner:
            inner.watch(params)
            value = loss(params) * scale
        gradients = inner.gradient(value, params, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
    products = outer.gradient(
        gradients, params, output_gradients=vector, unconnected_gradients="zero"
    )
    return [tf.convert_to_tensor(p) / scale for p in products]


def conjugate_gradient(matrix, right_side, iterations):
    """Solves `matrix(x) = right_side` for a symmetric positive definite matrix, from `x = 0`.

    The residual is orthogonal to all earlier ones, so that n iterations solve n unknowns exactly but for rounding. A
    residual of zero stays zero: iterations after the solution change nothing.

    If the matrix turns out not to be positive definite, `d . matrix(d) <= 0` for a direction d, the result is what
    there is by then, or the right side itself if that was the first direction; going on could lead anywhere.

    Args:
        matrix: function from a list of tensors to a list of tensors of the same shapes.
        right_side: list of tensors.
        iterations: number of products with the matrix, at least 1.

    References:
        - Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems"
        - the stop: Nocedal and Wright 2006, "Numerical optimization", algorithm 7.1
    """
    x = [tf.zeros_like(b) for b in right_side]
    residual = direction = right_side
    squared = dot(residual, residual)
    going = squared > 0
    for iteration in range(iterations):
        product = matrix(direction)
        curvature = dot(direction, product)
        # `~(<= 0)`, so that what is not finite shows.
        positive = ~(curvature <= 0)
        length = tf.where(going & positive, tf.math.divide_no_nan(squared, curvature), tf.zeros_like(squared))
        if iteration == 0:
            length = tf.where(going & ~positive, tf.ones_like(length), length)
        going &= positive
        x = [u + length * d for u, d in zip(x, direction, strict=True)]
        residual = [r - length * p for r, p in zip(residual, product, strict=True)]
        squared, previous = dot(residual, residual), squared
        turn = tf.math.divide_no_nan(squared, previous)
        direction = [r + turn * d for r, d in zip(residual, direction, strict=True)]
    return x


def neumann_series(matrix, right_side, iterations, rate):
    """Approximates the solution of `matrix(x) = right_side` by the first terms of a Neumann series.

    ```
    x = rate * sum_(i = 0 ... iterations) (I - rate * matrix)^i right_side
    ```

    Converges to the solution if and only if every eigenvalue of `rate * matrix` is in (0, 2), by the factor
    `max |1 - rate * eigenvalue|` a term; beyond, terms grow without bound.

    Args:
        matrix: function from a list of tensors to a list of tensors of the same shapes.
        right_side: list of tensors.
        iterations: number of products with the matrix, at least 1.
        rate: positive number or scalar tensor.

    References:
        - Lorraine et al. 2020, "Optimizing millions of hyperparameters by implicit differentiation", arXiv:1911.02590
    """
    term = total = right_side
    for _ in range(iterations):
        term = [t - tf.cast(rate, t.dtype) * p for t, p in zip(term, matrix(term), strict=True)]
        total = [s + t for s, t in zip(total, term, strict=True)]
    return [tf.cast(rate, s.dtype) * s for s in total]


def cholesky_solve(matrix, right_side):
    """Solves `matrix x = right_side` for a symmetric positive definite matrix; NaN where the matrix is not finite.

    TensorFlow's factorisation stops a step with an error at a NaN. A task that has diverged should rather say so by its
    loss, as everywhere.

    Args:
        matrix: `(..., n, n)`.
        right_side: `(..., n, columns)`.

    Returns:
        `(..., n, columns)`.
    """
    finite = tf.reduce_all(tf.math.is_finite(matrix))
    identity = tf.eye(tf.shape(matrix)[-1], dtype=matrix.dtype)
    factor = tf.linalg.cholesky(tf.where(finite, matrix, identity))
    nan = tf.constant(float("nan"), matrix.dtype)
    return tf.linalg.cholesky_solve(factor, right_side) + tf.where(finite, tf.zeros_like(nan), nan)
