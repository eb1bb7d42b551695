import numpy as np
import pytest
import tensorflow as tf

from keras_maml import datasets, episodes

LABELS = np.arange(60) % 6
X = np.linspace(-1, 2, 60)[:, None]


def described(dataset, **arguments):
    lines = []
    return episodes.describe(dataset, print_fn=lines.append, **arguments), "\n".join(lines)


def test_classes_of_fixed_size():
    facts, text = described(episodes.from_arrays(X, LABELS, 3, 2, 4, tasks=5, seed=0), batches=4)
    assert facts["length"] == "infinitely many" and facts["tasks"] == [5] and facts["episodes"] == 20
    assert facts["ways"] == (3, 3.0, 3) and facts["shots"] == (2, 2.0, 2)
    assert facts["queries_of_a_class"] == (4, 4.0, 4)
    assert facts["supports"] == (6, 6.0, 6) and facts["queries"] == (12, 12.0, 12)
    assert facts["supports_by_label"] == {0: 40, 1: 40, 2: 40} and facts["labels"] == (0, 2)
    assert facts["padding"] == {"support": 0.0, "query": 0.0}
    assert facts["shapes"]["support_x"] == ((5, 6, 1), "float64")
    assert -1 <= facts["values"]["query_x"][0] < facts["values"]["query_x"][1] <= 2
    assert "infinitely many batches of 5 tasks" in text and "(5, 12, 1)" in text
    assert "shots of a class       2" in text and "0: 40, 1: 40, 2: 40" in text
    assert max(map(len, text.splitlines())) <= 80


def test_padded_episodes_and_domains():
    sizes = dict(ways=(2, 4), shots=(1, 3), queries=(1, 2), tasks=5)
    mixed = episodes.mixture(
        {"a": episodes.from_arrays(X, LABELS, **sizes), "b": episodes.from_arrays(-X, LABELS, **sizes)},
        seed=0,
        batches=20,
    )
    facts, text = described(mixed, batches=20)
    weights = np.concatenate([x["support_weight"] for x, _, _ in mixed])
    query_weights = np.concatenate([w for _, _, w in mixed])
    domains = np.concatenate([x["domain"] for x, _, _ in mixed])
    ways = np.concatenate([x["support_y"].numpy().max(1) + 1 for x, _, _ in mixed])
    assert facts["length"] == 20 and facts["episodes"] == 100
    assert facts["padding"] == pytest.approx({"support": 1 - weights.mean(), "query": 1 - query_weights.mean()})
    assert facts["supports"] == (weights.sum(1).min(), pytest.approx(weights.sum(1).mean()), weights.sum(1).max())
    assert facts["ways"] == (2, pytest.approx(ways.mean()), 4)
    assert facts["domains"] == {"a": (domains == 0).sum(), "b": (domains == 1).sum()}
    assert f"domain a               {(domains == 0).sum()} episodes" in text


def test_regression_has_no_classes():
    facts, text = described(datasets.sinusoid(shots=5, queries=7, tasks=3, seed=0, batches=2))
    assert "ways" not in facts and "supports_by_label" not in facts
    assert facts["supports"] == (5, 5.0, 5) and facts["queries"] == (7, 7.0, 7)
    assert "queries of a task      7" in text


def test_other_peoples_datasets():
    x = {
        "support_x": {"a": np.zeros((4, 2, 3)), "b": np.ones((4, 2), "int32")},
        "support_y": np.tile(np.eye(3)[[0, 1]], (4, 1, 1)),
        "query_x": {"a": np.zeros((4, 5, 3)), "b": np.ones((4, 5), "int32")},
    }
    y = np.tile(np.eye(3)[[0, 1, 1, 0, 1]], (4, 1, 1))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(3)
    facts, _ = described(dataset)
    assert facts["tasks"] == [1, 3] and facts["ways"] == (2, 2.0, 2) and facts["queries_of_a_class"] == (2, 2.5, 3)
    assert facts["values"]["support_x['b']"] == (1, 1)


@pytest.mark.parametrize(
    "dataset",
    [
        tf.data.Dataset.from_tensors(np.zeros(3)),
        tf.data.Dataset.from_tensors(({"support_x": np.zeros((1, 2))}, np.zeros((1, 2)))),
    ],
)
def test_what_is_no_episode_batch(dataset):
    with pytest.raises(ValueError, match="An episode batch is .*Received: "):
        episodes.describe(dataset)
    with pytest.raises(ValueError, match="holds no batch"):
        episodes.describe(dataset.take(0))
