import numpy as np
import pytest
from curve_checks import check_arguments, check_independence, points_of

from keras_maml import episodes
from keras_maml.datasets import gaussian_process

KERNELS = {
    "rbf": lambda d, s: np.exp(-(d**2) / (2 * s**2)),
    "matern52": lambda d, s: (1 + 5**0.5 * d / s + 5 * d**2 / (3 * s**2)) * np.exp(-(5**0.5) * d / s),
    "periodic": lambda d, s: np.exp(-2 * np.sin(np.pi * d) ** 2 / s**2),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_the_process(kernel):
    # Whitened by the covariance written out here, the values are the normal numbers that they were made from.
    x, y = points_of(gaussian_process(3, 4, 20, seed=1, batches=1, noise=0, kernel=kernel, length_scale=(0.3, 0.9)))
    draws = np.asarray(episodes.uniform(1, np.arange(20), 9)).T
    normal = np.asarray(episodes.normal(1, np.arange(20), 7, first=2**31)).T
    exact = -2 + 4 * draws[:, 2:]
    np.testing.assert_allclose(x, exact, atol=1e-6)
    for task in range(20):
        distance = np.abs(exact[task][:, None] - exact[task])
        covariance = KERNELS[kernel](distance, 0.3 + 0.6 * draws[task, 0]) + 1e-6 * np.eye(7)
        expected = (0.1 + 0.9 * draws[task, 1]) * np.linalg.cholesky(covariance) @ normal[task]
        np.testing.assert_allclose(y[task], expected, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariance_over_tasks(kernel):
    # The product of two values of variance 1 has the kernel at their distance as its mean, and a variance of at most 2:
    # means over all pairs of about one distance are within five deviations.
    x, y = points_of(
        gaussian_process(
            1, 1, 20_000, seed=0, batches=1, noise=0, kernel=kernel, length_scale=(0.5, 0.5), output_scale=(1.0, 1.0)
        )
    )
    distance, product = np.abs(x[:, 0] - x[:, 1]), y[:, 0] * y[:, 1]
    for low in np.arange(0, 1.5, 0.1):
        chosen = (distance >= low) & (distance < low + 0.1)
        expected = KERNELS[kernel](distance[chosen], 0.5).mean()
        assert abs(product[chosen].mean() - expected) < 5 * np.sqrt(2 / chosen.sum())


def test_values_are_finite_even_for_repeated_points():
    x, y = points_of(gaussian_process(20, 20, 50, seed=0, batches=1, x_range=(1.0, 1.0), noise=0))
    assert np.isfinite(y).all() and (x == 1).all()
    # One value, but for the share of 1e-6 of its variance: deviations of 0.001 of the scale, at most 1.
    assert (y.max(1) - y.min(1)).max() < 0.01


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [1e-300, 1e300])
def test_values_are_finite_at_any_scale(kernel, length):
    _, y = points_of(gaussian_process(5, 5, 50, seed=0, batches=1, kernel=kernel, length_scale=(length, length)))
    assert np.isfinite(y).all()


def test_an_episode_depends_on_its_index_alone():
    check_independence(gaussian_process, rounding=1e-6)


@pytest.mark.parametrize("name", ["length_scale", "output_scale", "x_range"])
def test_errors(name):
    check_arguments(gaussian_process, name)
    with pytest.raises(ValueError, match="`kernel` must be one of .*Received: kernel='linear'"):
        gaussian_process(kernel="linear")
    if name != "x_range":
        with pytest.raises(ValueError, match=f"`{name}` must be .* above 0"):
            gaussian_process(**{name: (0.0, 1.0)})
