import keras
import numpy as np
import pytest

import keras_maml
from keras_maml import episodes

LABELS = np.repeat(np.arange(20) * 3, 4)
X = np.arange(80.0)[:, None]


def dataset(classes=None, labels=LABELS, **arguments):
    return episodes.from_arrays(X, labels, 2, 1, 1, tasks=2, classes=classes, **arguments)


class TestSplitClasses:
    def test_counts_and_shares_are_dealt_out(self):
        parts = episodes.split_classes(LABELS, {"train": 10, "validation": 0.25, "test": 4})
        assert [len(parts[name]) for name in ("train", "validation", "test")] == [10, 5, 4]
        joined = np.concatenate(list(parts.values()))
        assert len(set(joined)) == 19 and set(joined) <= set(LABELS)
        assert all((np.diff(part) > 0).all() for part in parts.values())

    def test_depends_on_the_seed_and_the_classes_alone(self):
        parts = episodes.split_classes(LABELS, {"train": 10, "test": 10}, seed=1)
        for labels in (LABELS[::-1], np.unique(LABELS), LABELS[3:]):
            again = episodes.split_classes(labels, {"train": 10, "test": 10}, seed=1)
            np.testing.assert_array_equal(again["train"], parts["train"])
        other = episodes.split_classes(LABELS, {"train": 10, "test": 10}, seed=2)
        assert set(other["train"]) != set(parts["train"])  # alike by chance once in 184,756

    def test_every_class_is_as_likely_in_every_part(self):
        # In 400 splits a class is among the 5 of 20 100 times, with a deviation of sqrt(400 * 3 / 16) = 8.7; 5 of them.
        counts = np.zeros(20)
        for seed in range(400):
            counts[episodes.split_classes(LABELS, {"test": 5}, seed=seed)["test"] // 3] += 1
        assert counts.min() > 100 - 44 and counts.max() < 100 + 44

    def test_names_and_exclusions_come_first(self):
        parts = episodes.split_classes(LABELS, {"train": 15, "test": [3, 0]}, exclude=[6, 9, 12])
        np.testing.assert_array_equal(parts["test"], [0, 3])
        assert not set(parts["train"]) & {0, 3, 6, 9, 12} and len(parts["train"]) == 15
        names = np.array(["a", "b", "c"])[np.arange(9) % 3]
        parts = episodes.split_classes(names, {"train": ["a", "c"], "test": 1})
        assert parts["test"].tolist() == ["b"]

    def test_overlap_is_refused_unless_it_is_asked_for(self):
        named = {"train": [0, 3, 6], "test": [6, 9]}
        with pytest.raises(ValueError, match="'train' and 'test' share 1 classes of 3 and 2, such as 6"):
            episodes.split_classes(LABELS, named)
        assert episodes.split_classes(LABELS, named, allow_overlap=True)["test"].tolist() == [6, 9]

    @pytest.mark.parametrize(
        "parts, arguments, message",
        [
            ((64, 16), {}, "`parts` must be a dict such as"),
            ({}, {}, "`parts` must be a dict such as"),
            ({"train": 15, "test": 6}, {}, "'test' asks for 6 .* 20 classes, of which 0 are excluded and 5 are left"),
            ({"train": 18}, {"exclude": [0, 3, 6]}, "of which 3 are excluded and 17 are left"),
            ({"train": [0, 1]}, {}, "'train' must name classes that occur. Received: 2 .* 1 do not occur, such as 1"),
            ({"train": []}, {}, "must be integers or strings|Received: 0 classes"),
            ({"train": [0]}, {"exclude": [0, 3]}, "'train' has 1 classes of `exclude`, such as 0"),
            ({"train": 5}, {"exclude": [1]}, "'exclude' must name classes that occur"),
            ({"train": 0}, {}, "`train` must be an integer of at least 1"),
            ({"train": 1.5}, {}, "a share in"),
            ({"train": 0.01}, {}, "at least one class"),
            ({"train": 5}, {"seed": -1}, "`seed` must be"),
        ],
    )
    def test_errors(self, parts, arguments, message):
        with pytest.raises(ValueError, match=message):
            episodes.split_classes(LABELS, parts, **arguments)


class TestCheckDisjoint:
    def test_labels(self):
        episodes.check_disjoint(train=[1, 2], validation=[3], test=["a"])
        with pytest.raises(ValueError, match="'train' and 'test' share 1 classes of 2 and 1, such as 2"):
            episodes.check_disjoint(train=[1, 2, 2], validation=[3], test=[2])

    def test_datasets_are_compared_by_their_examples(self):
        parts = episodes.split_classes(LABELS, {"train": 12, "test": 8})
        train, test = dataset(parts["train"]), dataset(parts["test"])
        episodes.check_disjoint(train=train, test=test)
        renumbered = dataset(57 - parts["test"], labels=57 - LABELS)
        assert set(57 - parts["test"]) & set(parts["train"])  # the numbers of other examples
        episodes.check_disjoint(train=train, test=renumbered)
        with pytest.raises(ValueError, match="'test' and 'again' share 8 classes of 8 and 8"):
            episodes.check_disjoint(test=test, again=renumbered)
        with pytest.raises(ValueError, match="'train' and 'test' share 12 classes of 12 and 20"):
            episodes.check_disjoint(train=train, test=dataset(labels=100 + LABELS))

    def test_mixtures_know_the_classes_of_their_domains(self):
        low, high = dataset(np.arange(8) * 3), dataset(np.arange(8, 16) * 3)
        both = episodes.mixture({"low": low, "high": high})
        episodes.check_disjoint(train=both, test=dataset([48, 51]))
        with pytest.raises(ValueError, match="share 1 classes of 16 and 2, such as 45"):
            episodes.check_disjoint(train=both, test=dataset([45, 51]))

    def test_errors(self):
        with pytest.raises(ValueError, match="'test' are not known any more"):
            episodes.check_disjoint(train=dataset(), test=dataset().prefetch(1))
        with pytest.raises(ValueError, match="'train' is a .*Dataset, 'test' a list"):
            episodes.check_disjoint(train=dataset(), test=[1, 2])


class TestFit:
    def make(self):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        meta_model = keras_maml.MetaModel(model, keras_maml.MAML(0.01, 1), "parallel")
        meta_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return meta_model

    def test_refuses_validation_on_training_classes(self):
        with pytest.raises(ValueError, match="'x' and 'validation_data' share 20 classes"):
            self.make().fit(dataset(batches=1), validation_data=dataset(batches=1), verbose=0)

    def test_takes_other_classes_and_what_it_knows_nothing_of(self):
        parts = episodes.split_classes(LABELS, {"train": 12, "test": 8})
        train, test = dataset(parts["train"], batches=1), dataset(parts["test"], batches=1)
        for validation in (test, train.take(-1)):
            history = self.make().fit(train, validation_data=validation, verbose=0).history
            assert np.isfinite(history["val_loss"]).all()


def test_numbers_are_not_taken_for_strings():
    for arguments in ({"parts": {"train": 3}, "exclude": ["3"]}, {"parts": {"train": ["3", "6"]}}):
        with pytest.raises(ValueError, match="labels are integers, and .* has strings"):
            episodes.split_classes(LABELS, **arguments)
    with pytest.raises(ValueError, match="has strings"):
        episodes.check_disjoint(a=[1, 2], b=["1", "2"])


def test_exclude_may_be_a_set_or_none_and_no_single_label():
    expected = episodes.split_classes(LABELS, {"train": 5}, exclude=[3, 6])
    found = episodes.split_classes(LABELS, {"train": 5}, exclude={6, 3})
    np.testing.assert_array_equal(found["train"], expected["train"])
    whole = episodes.split_classes(LABELS, {"train": 5})["train"]
    for nothing in (None, set(), ()):
        np.testing.assert_array_equal(episodes.split_classes(LABELS, {"train": 5}, exclude=nothing)["train"], whole)
    with pytest.raises(ValueError, match="`exclude` must be integers or strings of shape"):
        episodes.split_classes(LABELS, {"train": 5}, exclude=3)


def test_groups_may_share_their_inputs_but_not_their_targets():
    hours = np.tile(np.arange(24.0), 20)[:, None]
    stores, sales = np.repeat(np.arange(20), 24), np.random.default_rng(0).uniform(size=480)
    half = slice(None, 240), slice(240, None)
    first, second, again = (
        episodes.from_groups(hours[part], sales[part], stores[part] + shift, 5, 5, tasks=2)
        for part, shift in ((half[0], 0), (half[1], 0), (half[0], 100))
    )
    episodes.check_disjoint(first=first, second=second)
    with pytest.raises(ValueError, match="share 10 classes of 10 and 10"):
        episodes.check_disjoint(first=first, again=again)
