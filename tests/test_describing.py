import math

import numpy as np
import pytest
import tensorflow as tf
from handmade import batch

from keras_maml import datasets, episodes

LABELS = np.arange(60) % 6
X = np.linspace(-1, 2, 60)[:, None]


def described(dataset, **arguments):
    lines = []
    facts = episodes.describe(dataset, print_fn=lines.append, **arguments)
    assert max(map(len, lines)) <= 80
    return facts, "\n".join(lines)


def test_classes_of_fixed_size():
    facts, text = described(episodes.from_arrays(X, LABELS, 3, 2, 4, tasks=5, seed=0), batches=4)
    assert facts["length"] == math.inf and facts["tasks"] == [5] and facts["episodes"] == 20
    assert facts["ways"] == (3, 3.0, 3) and facts["shots"] == (2, 2.0, 2)
    assert facts["queries_of_a_class"] == (4, 4.0, 4)
    assert facts["supports"] == (6, 6.0, 6) and facts["queries"] == (12, 12.0, 12)
    assert facts["supports_by_label"] == {0: 40, 1: 40, 2: 40}
    assert facts["labels"] == (0, 2) and facts["from_zero"] and facts["unsupported"] == 0
    assert facts["padding"] == {"support": 0.0, "query": 0.0} and "domains" not in facts
    assert facts["arrays"] == {
        "support_x": ((5, 6, 1), "float64"),
        "support_y": ((5, 6), "int32"),
        "query_x": ((5, 12, 1), "float64"),
        "query_y": ((5, 12), "int32"),
    }
    assert -1 <= facts["values"]["query_x"][0] < facts["values"]["query_x"][1] <= 2
    assert facts["values"]["query_y"] == (0, 2)
    for words in (
        "Episodes of classification: infinitely many batches of 5 tasks\n",
        "query_x    (5, 12, 1)  float64",
        "query_y    (5, 12)     int32    0 to 2",
        "in 20 episodes                  least      mean  greatest",
        "shots (supports of a class)         2         2         2",
        "supports by label  0: 40  1: 40  2: 40",
        "labels             0 to 2, 0 to ways - 1 in every task",
        "padding            none",
    ):
        assert words in text
    assert "!" not in text


def test_padded_episodes_and_domains():
    # Values are 1.5 to 6: padding, zeros of label 0, is in no figure but its own.
    sizes = dict(ways=(2, 4), shots=(1, 3), queries=(1, 2), tasks=5)
    one, other = (episodes.from_arrays(factor * (2 + X / 2), LABELS, **sizes) for factor in (1, 2))
    mixed = episodes.mixture({"a": one, "b": other}, (3, 1), seed=0, batches=20)
    facts, text = described(mixed, batches=20)
    elements = list(mixed)
    weights, labels, domains = (
        np.concatenate([x[name] for x, _, _ in elements]) for name in ("support_weight", "support_y", "domain")
    )
    query_weights = np.concatenate([w for _, _, w in elements])
    ways = labels.max(1) + 1
    assert facts["length"] == 20 and facts["episodes"] == 100
    assert facts["padding"] == pytest.approx({"support": 1 - weights.mean(), "query": 1 - query_weights.mean()})
    assert facts["supports"] == (weights.sum(1).min(), pytest.approx(weights.sum(1).mean()), weights.sum(1).max())
    assert facts["ways"] == (2, pytest.approx(ways.mean()), 4) and facts["shots"][::2] == (1, 3)
    assert facts["shots"][1] == pytest.approx(weights.sum() / ways.sum())
    assert facts["queries_of_a_class"][1] == pytest.approx(query_weights.sum() / ways.sum())
    assert facts["supports_by_label"] == {k: ((labels == k) & (weights > 0)).sum() for k in range(4)}
    assert facts["domains"] == {"a": (domains == 0).sum(), "b": (domains == 1).sum()}
    assert 1.5 <= facts["values"]["query_x"][0] < facts["values"]["query_x"][1] <= 6 and facts["from_zero"]
    assert f"episodes by domain  a: {facts['domains']['a']} ({facts['domains']['a']} %)" in text
    assert f"{100 * facts['padding']['support']:.0f} % of support rows" in text
    # A list of the batches knows no names of domains.
    facts, _ = described(elements, batches=20)
    assert facts["domains"] == {0: (domains == 0).sum(), 1: (domains == 1).sum()}


def test_regression_has_no_classes():
    facts, text = described(datasets.sinusoid(shots=5, queries=7, tasks=3, seed=0, batches=2))
    assert not {"ways", "shots", "supports_by_label", "labels", "from_zero"} & set(facts)
    assert facts["supports"] == (5, 5.0, 5) and facts["queries"] == (7, 7.0, 7) and facts["episodes"] == 6
    assert -5 <= facts["values"]["support_y"][0] < facts["values"]["support_y"][1] <= 5
    assert "Episodes of regression: 2 batches of 3 tasks\n" in text and "queries of a task          7" in text


def test_other_peoples_datasets():
    rows = np.tile(np.eye(3)[[2, 1]], (4, 1, 1))
    x = {"support_x": {"a": np.zeros((4, 2, 3)), "b": np.ones((4, 2), "int32")}, "support_y": rows}
    x["query_x"] = {"a": np.zeros((4, 5, 3)), "b": np.ones((4, 5), "int32")}
    y = np.tile(np.eye(3)[[2, 1, 1, 2, 1]], (4, 1, 1))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(3)
    facts, text = described(dataset)
    assert facts["tasks"] == [1, 3] and facts["ways"] == (2, 2.0, 2) and facts["queries_of_a_class"] == (2, 2.5, 3)
    assert facts["values"]["support_x['b']"] == (1, 1) and facts["arrays"]["query_x['a']"] == ((None, 5, 3), "float64")
    assert "(?, 5, 3)" in text and "2 batches of 1 or 3 tasks" in text
    # Classes 1 and 2: a loss for 2 ways would fail.
    assert facts["labels"] == (1, 2) and not facts["from_zero"]
    assert "1 to 2, not 0 to ways - 1 in every task" in text


def test_what_is_suspicious_is_said():
    images = np.ones((1, 2, 4))
    images[0, 1, 2] = np.nan
    facts, text = described(batch(queries=((0, 1, 5),), support_x=images))
    assert facts["not_finite"] == {"support_x": 1} and facts["unsupported"] == 1
    assert facts["values"]["support_x"] == (1, 1)
    assert "! support_x: NaN or infinite values in 1 example\n" in text
    assert "! a class without a support has queries in 1 task" in text


def test_weights_of_others():
    # Only x says which queries are real; one support is none.
    facts, _ = described(batch(query_weight=np.array([[1.0, 0.5, 0.0]]), support_weight=np.array([[True, False]])))
    assert facts["padding"] == pytest.approx({"support": 1 / 2, "query": 1 / 3})
    assert facts["supports"] == (1, 1.0, 1) and facts["queries"] == (2, 2.0, 2)
    facts, _ = described(batch(support_weight=np.zeros((1, 2))))
    assert facts["ways"] == (0, 0.0, 0) and facts["padding"]["support"] == 1 and facts["unsupported"] == 1


def test_many_labels_and_long_names_stay_within_80_columns():
    x = {"an input of which the name is far too long to be printed": X, "b": np.zeros((60, 84, 84, 3), "uint8")}
    facts, text = described(episodes.from_arrays(x, np.arange(60) // 2, 30, 1, 1, tasks=2, seed=0))
    assert len(facts["supports_by_label"]) == 30 and " more\n" in text and "support_x['an input" in text


def test_errors():
    with pytest.raises(ValueError, match="holds no batch"):
        episodes.describe([])
    with pytest.raises(ValueError, match="`batches` must be an integer of at least 1"):
        episodes.describe([batch()], batches=0)
