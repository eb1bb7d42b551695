"""Against `numpy.linalg` on systems whose matrix can be written down."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.linear_solvers import conjugate_gradient, dot, hessian_vector_product, neumann_series


def pack(vector):
    """A vector of five as two tensors, (2,) and (3, 1)."""
    return [tf.constant(vector[:2]), tf.constant(vector[2:].reshape(3, 1))]


def unpack(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


def positive_definite(seed):
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(5, 5))
    return root @ root.T + np.eye(5), generator.normal(size=5)


def as_function(matrix):
    return lambda vector: pack(matrix @ unpack(vector))


@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradient_is_exact_after_as_many_iterations_as_unknowns(seed):
    matrix, right_side = positive_definite(seed)
    solution = conjugate_gradient(as_function(matrix), pack(right_side), iterations=5)
    assert [t.shape for t in solution] == [(2,), (3, 1)]
    np.testing.assert_allclose(unpack(solution), np.linalg.solve(matrix, right_side), rtol=1e-9)


def test_first_iterate_is_the_step_of_steepest_descent():
    # x = b (b.b) / (b.Ab)
    matrix, b = positive_definite(0)
    solution = conjugate_gradient(as_function(matrix), pack(b), iterations=1)
    np.testing.assert_allclose(unpack(solution), b * (b @ b) / (b @ matrix @ b), rtol=1e-12)


def test_iterations_after_the_solution_change_nothing():
    # The identity is solved at once; from then on the residual is 0 and 0 / 0 must not become NaN.
    b = np.arange(1.0, 6.0)
    np.testing.assert_array_equal(unpack(conjugate_gradient(lambda v: v, pack(b), iterations=4)), b)


def test_zero_right_side():
    matrix, _ = positive_definite(0)
    solution = conjugate_gradient(as_function(matrix), pack(np.zeros(5)), iterations=3)
    np.testing.assert_array_equal(unpack(solution), np.zeros(5))


def cubic(params):
    """x^3 y + y^2 z, with x a scalar and (y, z) a vector."""
    x, (y, z) = params[0], tf.unstack(params[1])
    return x**3 * y + y**2 * z


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("run", [lambda f: f, tf.function])
def test_hessian_vector_product(scale, run):
    # Gradient (3 x^2 y, x^3 + 2 y z, y^2), so at x = 2, y = 3, z = 5:
    #     6 x y   3 x^2   0          36  12   0
    #     3 x^2   2 z     2 y    =   12  10   6
    #     0       2 y     0           0   6   0
    hessian = np.array([[36.0, 12.0, 0.0], [12.0, 10.0, 6.0], [0.0, 6.0, 0.0]])
    params = [tf.constant(2.0, tf.float64), tf.constant([3.0, 5.0], tf.float64)]
    for vector in np.vstack([np.eye(3), [[1.0, -2.0, 0.5]]]):
        product = run(hessian_vector_product)(
            cubic, params, [tf.constant(vector[0]), tf.constant(vector[1:])], scale
        )
        np.testing.assert_allclose(unpack(product), hessian @ vector, rtol=1e-12)


def test_hessian_of_what_is_linear_or_unused_is_zero():
    params = [tf.constant([1.0, 2.0]), tf.constant(3.0)]
    products = hessian_vector_product(lambda values: tf.reduce_sum(values[0]), params, [tf.ones(2), tf.ones([])])
    np.testing.assert_array_equal(unpack(products), np.zeros(3))


def test_sparse_gradients_become_dense():
    # sum(table[0]^3) / 6 has the Hessian diag(table[0]) in the first row and zeros elsewhere.
    table = tf.constant([[2.0, 3.0], [4.0, 5.0]])
    (product,) = hessian_vector_product(
        lambda values: tf.reduce_sum(tf.gather(values[0], [0]) ** 3) / 6, [table], [tf.ones((2, 2))]
    )
    np.testing.assert_allclose(product, [[2.0, 3.0], [0.0, 0.0]])


def test_dot():
    assert dot([tf.constant([1.0, 2.0]), tf.constant(3.0)], [tf.constant([4.0, 5.0]), tf.constant(6.0)]) == 32


def matrix_of(rows):
    return lambda vector: [tf.linalg.matvec(tf.constant(rows, tf.float64), vector[0])]


def test_conjugate_gradient_stops_where_curvature_is_not_positive():
    # b = (2, 1). diag(1, -4): b'Ab = 0, no positive curvature along the first direction, so x = b.
    # diag(2, -1): b'Ab = 7, |b|^2 = 5, x = 5/7 b; residual b - A x = (-6/7, 12/7), turn (180/49) / 5 = 36/49,
    # direction (-6/7 + 72/49, 12/7 + 36/49) = (30/49, 120/49), curvature (2 * 900 - 14400) / 49^2 < 0: there it ends.
    b = [tf.constant([2.0, 1.0], tf.float64)]
    np.testing.assert_allclose(conjugate_gradient(matrix_of(np.diag([1.0, -4.0])), b, 9)[0], [2, 1])
    np.testing.assert_allclose(conjugate_gradient(matrix_of(np.diag([2.0, -1.0])), b, 9)[0], [10 / 7, 5 / 7])


def test_neumann_series():
    # Terms, with the matrix diag(1, 3) and rate 1/2: (1/2)^i and (-1/2)^i. Three products: 1/2 (1 + 1/2 + 1/4 + 1/8)
    # and 1/2 (1 - 1/2 + 1/4 - 1/8); many: 1 and 1/3.
    b = [tf.constant([1.0, 1.0], tf.float64)]
    solve = functools.partial(neumann_series, matrix_of(np.diag([1.0, 3.0])), b)
    np.testing.assert_allclose(solve(3, 0.5)[0], [0.9375, 0.3125], rtol=1e-12)
    np.testing.assert_allclose(solve(60, 0.5)[0], [1, 1 / 3], rtol=1e-12)
    # At rate 1 the second eigenvalue of rate * matrix is 3, beyond 2: terms (-2)^i grow.
    np.testing.assert_allclose(solve(5, 1.0)[0], [1, 1 - 2 + 4 - 8 + 16 - 32], rtol=1e-12)
