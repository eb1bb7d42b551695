import keras
import numpy as np
import pytest
import tensorflow as tf
from chi_square import check_uniform

import keras_maml
from keras_maml import episodes

LABELS = np.arange(60) % 6


def source(offset, **arguments):
    arguments = {"ways": 3, "shots": 1, "queries": 2, "tasks": 8} | arguments
    return episodes.from_arrays(offset + np.arange(60.0)[:, None], LABELS, **arguments)


def three(**arguments):
    datasets = {"a": source(0), "b": source(100), "c": source(200)}
    return episodes.mixture(datasets, **arguments)


def test_an_episode_is_that_of_its_domain():
    alone = [source(offset, seed=4, batches=5) for offset in (0, 100, 200)]
    for mixed, *domains in zip(three(seed=4, batches=5), *alone, strict=True):
        x, y = mixed
        for task, domain in enumerate(x["domain"].numpy()):
            expected_x, expected_y = domains[domain]
            np.testing.assert_array_equal(y[task], expected_y[task])
            for key, value in expected_x.items():
                np.testing.assert_array_equal(x[key][task], value[task])


def test_domains_are_as_frequent_as_their_weights():
    drawn = np.concatenate([x["domain"] for x, _ in three(weights=(2, 0, 6), seed=0, batches=500)])
    counts = np.bincount(drawn, minlength=3)
    assert counts[1] == 0
    check_uniform([counts[0] * 3, counts[2]])
    drawn = np.concatenate([x["domain"] for x, _ in three(seed=1, batches=500)])
    check_uniform(np.bincount(drawn))
    check_uniform(np.bincount(drawn[:-1] * 3 + drawn[1:]))


def test_the_classes_of_an_episode_do_not_depend_on_its_domain():
    domain, row = (np.concatenate(part) for part in zip(*drawn_pairs(), strict=True))
    check_uniform(np.bincount(domain * 6 + LABELS[row % 100], minlength=18))


def drawn_pairs():
    """Domain, and row of the first support, of every episode of some batches."""
    for x, _ in three(seed=3, batches=500):
        yield x["domain"].numpy(), x["support_x"].numpy()[:, 0, 0].astype(int)


def test_resumes_shards_and_repeats():
    def read(**arguments):
        return [tf.nest.flatten(element) for element in three(seed=2, **arguments)]

    whole = read(batches=6)
    for part, expected in (
        (read(batches=6), whole),
        (read(batches=2, start=4 * 8), whole[4:]),
        (read(batches=2, shard=(1, 3)), whole[1::3]),
    ):
        for one, other in zip(part, expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert three(seed=2, batches=6).cardinality() == 6


def test_shapes_are_static_and_names_are_known():
    dataset = three()
    assert all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(dataset.element_spec))
    assert dataset.element_spec[0]["domain"] == tf.TensorSpec((8,), tf.int32)
    assert dataset.plan.domains == ("a", "b", "c")


def test_padded_domains_and_families_of_functions_mix():
    sizes = {"ways": (2, 3), "shots": (1, 2)}
    mixed = episodes.mixture({"a": source(0, **sizes), "b": source(100, **sizes)}, seed=0)
    x, _, weight = next(iter(mixed))
    values = np.where(x["support_weight"].numpy() > 0, x["support_x"].numpy()[..., 0], np.nan)
    assert (np.nanmin(values, 1) // 100 == x["domain"].numpy()).all() and weight.shape == (8, 6)
    waves = {
        "small": keras_maml.datasets.sinusoid(amplitude=(0.1, 1.0), tasks=4),
        "large": keras_maml.datasets.sinusoid(amplitude=(5.0, 9.0), tasks=4),
    }
    assert next(iter(episodes.mixture(waves)))[0]["support_x"].shape == (4, 10, 1)


def test_a_meta_model_learns_from_a_mixture():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    meta_model = keras_maml.MetaModel(model, keras_maml.MAML(1e-6, 1), "parallel")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    meta_model.compile("sgd", loss)
    dataset = three(seed=0, batches=2)
    assert np.isfinite(meta_model.fit(dataset, verbose=0).history["loss"]).all()
    x, y = next(iter(dataset))
    with_domain = meta_model.predict_on_batch(x)
    without = meta_model.predict_on_batch({key: value for key, value in x.items() if key != "domain"})
    np.testing.assert_array_equal(with_domain, without)
    with pytest.raises(ValueError, match=r"`domain` must be one tensor \(tasks,\)"):
        meta_model(x | {"domain": y})


@pytest.mark.parametrize(
    "datasets, arguments, message",
    [
        ({"a": source(0)}, {}, "two or more datasets by domain"),
        ([source(0), source(1)], {}, "two or more datasets by domain"),
        ({"a": source(0), "b": source(1).prefetch(1)}, {}, "before `map`, `prefetch`"),
        ({"a": source(0), "b": source(1)}, {"weights": (1, -1)}, "`weights` must be 2 numbers of at least 0"),
        ({"a": source(0), "b": source(1)}, {"weights": (0, 0)}, "not all 0"),
        ({"a": source(0), "b": source(1)}, {"weights": (1,)}, "one for each of \\['a', 'b'\\]"),
        ({"a": source(0), "b": source(1, tasks=4)}, {}, "8 for 'a', 4 for 'b'"),
        ({"a": source(0, seed=1), "b": source(1)}, {}, "Give seed to .*domain 'a'. Received there: {'seed': 1}"),
        ({"a": source(0), "b": source(1, start=3, batches=2)}, {}, "Give batches, start to `mixture`"),
        ({"a": source(0), "b": source(1, ways=4)}, {}, "the same shapes and dtypes.*ways=\\(5, 20\\)"),
        ({"a": source(0), "b": source(1, ways=(2, 3))}, {}, "the same shapes and dtypes"),
        ({"a": source(0), "b": three()}, {}, "Domain 'b' is a mixture itself"),
        ({"a": source(0), "b": source(1)}, {"seed": -1}, "`seed` must be"),
    ],
)
def test_errors(datasets, arguments, message):
    with pytest.raises(ValueError, match=message):
        episodes.mixture(datasets, **arguments)
