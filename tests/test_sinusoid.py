import math
import statistics

import numpy as np
import pytest
import tensorflow as tf
from chi_square import check_uniform

from keras_maml.datasets import sinusoid


def first_batch(**arguments):
    x, y = next(iter(sinusoid(**{"seed": 0} | arguments)))
    return {name: values.numpy()[..., 0] for name, values in (x | {"query_y": y}).items()}


def test_points_lie_on_the_wave():
    # Amplitude 2, phase pi/6: y = 2 * sin(x - pi/6), float32 rounding of x and y.
    batch = first_batch(amplitude=(2.0, 2.0), phase=(math.pi / 6, math.pi / 6), x_range=(-3, 3))
    for part in ("support", "query"):
        expected = 2 * np.sin(batch[part + "_x"].astype("float64") - math.pi / 6)
        np.testing.assert_allclose(batch[part + "_y"], expected, atol=1e-6)


def test_support_and_query_share_one_wave_a_task():
    # y = a * sin(x) + b * cos(x) with a = amplitude * cos(phase), b = -amplitude * sin(phase).
    batch = first_batch(shots=20, queries=3, tasks=50)
    waves = []
    for t in range(50):
        x = batch["support_x"][t].astype("float64")
        basis = np.stack([np.sin(x), np.cos(x)], 1)
        (a, b), *_ = np.linalg.lstsq(basis, batch["support_y"][t], rcond=None)
        query = a * np.sin(batch["query_x"][t]) + b * np.cos(batch["query_x"][t])
        np.testing.assert_allclose(batch["query_y"][t], query, atol=1e-4)
        waves.append((math.hypot(a, b), math.atan2(-b, a)))
    amplitudes, phases = np.transpose(waves)
    assert 0.1 - 1e-4 <= amplitudes.min() < amplitudes.max() <= 5 + 1e-4
    assert -1e-3 <= phases.min() < phases.max() <= math.pi + 1e-3
    assert len(np.unique(amplitudes)) == len(np.unique(phases)) == 50


def test_amplitude_is_uniform():
    # At x = pi/2 and phase 0 the wave is its amplitude.
    at = {"phase": (0.0, 0.0), "x_range": (math.pi / 2, math.pi / 2)}
    batch = first_batch(shots=1, queries=1, tasks=20_000, **at)
    np.testing.assert_array_equal(batch["support_y"], batch["query_y"])
    check_uniform(np.histogram(batch["support_y"], 49, (0.1, 5.0))[0])


def test_phase_is_uniform():
    # At x = pi/2 and amplitude 1 the wave is cos(phase).
    at = {"amplitude": (1.0, 1.0), "x_range": (math.pi / 2, math.pi / 2)}
    batch = first_batch(shots=1, queries=1, tasks=20_000, **at)
    check_uniform(np.histogram(np.arccos(batch["support_y"]), 30, (0, math.pi))[0])


def test_points_are_uniform_and_support_and_query_independent():
    batch = first_batch(shots=2, queries=1, tasks=20_000)
    limits = [(-5, 5), (-5, 5)]
    for other in (batch["support_x"][:, 1], batch["query_x"][:, 0]):
        check_uniform(np.histogram2d(batch["support_x"][:, 0], other, 12, limits)[0])


def test_noise_is_normal_and_changes_nothing_else():
    clean, noisy = first_batch(tasks=8000), first_batch(tasks=8000, noise=0.5)
    np.testing.assert_array_equal(clean["support_x"], noisy["support_x"])
    np.testing.assert_array_equal(clean["query_x"], noisy["query_x"])
    normal = statistics.NormalDist(0, 0.5)
    edges = [-math.inf, *(normal.inv_cdf(k / 20) for k in range(1, 20)), math.inf]
    for part in ("support", "query"):
        noise = noisy[part + "_y"] - clean[part + "_y"]
        check_uniform(np.histogram(noise, edges)[0])
        # Independent of where the point is, and of the noise on the next one.
        x_edges = np.linspace(-5, 5, 11)
        check_uniform(np.histogram2d(noisy[part + "_x"][:, 0], noise[:, 0], [x_edges, edges])[0])
        check_uniform(np.histogram2d(noise[:, 0], noise[:, 1], [edges, edges])[0])


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("tasks", [1, 7, 30])
def test_an_episode_does_not_depend_on_its_batch(tasks, noise):
    def read(tasks, start=0):
        dataset = sinusoid(4, 6, tasks, seed=3, start=start, noise=noise, batches=30 // tasks + 1)
        x, y = zip(*dataset, strict=True)
        columns = [np.concatenate([part[name] for part in x]) for name in x[0]]
        return np.concatenate([*columns, np.concatenate(y)], axis=1)[:30]

    np.testing.assert_array_equal(read(tasks), read(10))
    np.testing.assert_array_equal(read(tasks, start=5)[:25], read(10)[5:])


def test_the_support_does_not_depend_on_queries():
    few, many = first_batch(queries=1), first_batch(queries=100)
    np.testing.assert_array_equal(few["support_x"], many["support_x"])
    np.testing.assert_array_equal(few["support_y"], many["support_y"])


def test_an_iterator_restarts_with_a_seed_only():
    np.testing.assert_array_equal(first_batch()["query_y"], first_batch()["query_y"])
    assert (first_batch()["query_y"] != first_batch(seed=1)["query_y"]).all()
    fresh = sinusoid()
    assert (next(iter(fresh))[1] != next(iter(fresh))[1]).numpy().any()


def test_shapes_and_length():
    x, y = sinusoid(shots=3, queries=7).element_spec
    assert x["support_x"] == x["support_y"] == tf.TensorSpec((25, 3, 1), tf.float32)
    assert x["query_x"] == y == tf.TensorSpec((25, 7, 1), tf.float32)
    assert sinusoid().cardinality() == tf.data.INFINITE_CARDINALITY
    assert len(sinusoid(batches=11)) == len(list(sinusoid(batches=11))) == 11


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shots": 0}, "`shots` must be an integer of at least 1. Received: shots=0"),
        ({"queries": 0}, "`queries` must be"),
        ({"tasks": 0}, "`tasks` must be"),
        ({"noise": -0.1}, "`noise` must be a finite number of at least 0. Received: noise=-0.1"),
        ({"amplitude": (5.0, 0.1)}, r"`amplitude` must be \(least, greatest\).*\(5.0, 0.1\)"),
        ({"phase": 3.0}, "`phase` must be"),
        ({"x_range": (0.0, math.inf)}, "`x_range` must be"),
    ],
)
def test_errors_say_what_came(change, message):
    with pytest.raises(ValueError, match=message):
        sinusoid(**change)
