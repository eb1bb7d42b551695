import json
import os
import sys
import types

import numpy as np
import pytest

from keras_maml.datasets import clinc150

DOMAINS = {f"domain{d}": [f"intent{d}{i}" for i in range(3)] for d in range(10)}
DOMAIN_OF = {intent: domain for domain, intents in DOMAINS.items() for intent in intents} | {"oos": "oos"}
# As in the set: train, validation and test queries of every intent, and queries of no intent.
DATA = {}
for part in ("train", "val", "test"):
    intents_twice = [intent for intent in DOMAIN_OF if intent != "oos"] * 2
    DATA[part] = [[f"{part} query {n} of {intent}", intent] for n, intent in enumerate(intents_twice)]
    DATA[f"oos_{part}"] = [[f"{part} nonsense {n}", "oos"] for n in range(4)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data_full.json").write_text(json.dumps(DATA))
    (tmp_path / "domains.json").write_text(json.dumps(DOMAINS))
    return tmp_path


class Builder:
    """What is needed of the builder of `clinc_oos`."""

    def as_dataset(self, split):
        name = split.replace("validation", "val")
        name = "oos_" + name.removesuffix("_oos") if name.endswith("_oos") else name
        keys = ("text", "intent_name", "domain_name")
        queries = [(text, intent, DOMAIN_OF[intent]) for text, intent in DATA[name]]
        rows = [dict(zip(keys, map(str.encode, query), strict=True)) for query in queries]
        return types.SimpleNamespace(as_numpy_iterator=lambda: iter(rows))


@pytest.fixture
def tfds(monkeypatch):
    module = types.SimpleNamespace(builder=lambda name, data_dir: Builder())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


def test_no_domain_is_in_two_parts_and_nothing_is_lost(folder):
    splits = clinc150(folder)
    assert [len(np.unique(domains)) for _, _, domains in splits.values()] == [5, 2, 3]
    seen = {}
    for texts, intents, domains in splits.values():
        for text, intent, domain in zip(texts, intents, domains, strict=True):
            assert intent in DOMAINS[domain] and text.endswith(intent)
            seen[text] = domain
    assert len(seen) == sum(len(texts) for texts, _, _ in splits.values()) == 10 * 3 * 3 * 2


def test_queries_of_no_intent_come_on_request(folder):
    assert "out_of_scope" not in clinc150(folder)
    texts, intents, domains = clinc150(folder, out_of_scope=True)["out_of_scope"]
    assert len(texts) == 12 and set(intents) == set(domains) == {"oos"}


def test_splits_by_seed_by_count_and_by_name(folder):
    def domains_of(**arguments):
        return {name: set(domains) for name, (_, _, domains) in clinc150(folder, **arguments).items()}

    assert domains_of(seed=1) == domains_of(seed=1) != domains_of(seed=2)
    assert list(domains_of(split=(7, 0, 3))) == ["train", "test"]
    named = {"train": ["domain3", "domain1"], "test": ["domain0"]}
    assert domains_of(split=named) == {"train": {"domain1", "domain3"}, "test": {"domain0"}}


def test_tensorflow_datasets_give_the_same(folder, tfds):
    from_files, from_tfds = clinc150(folder, out_of_scope=True), clinc150(out_of_scope=True)
    assert list(from_files) == list(from_tfds)
    for one, other in zip(from_files.values(), from_tfds.values(), strict=True):
        assert set(zip(*one, strict=True)) == set(zip(*other, strict=True))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": (5, 5)}, r"`split` must be \(train, validation, test\)"),
        ({"split": (5, 5, 1)}, r"1 to 10 domains together. Received: split=\(5, 5, 1\)"),
        ({"split": (0, 0, 0)}, "1 to 10 domains"),
        ({"split": (-1, 2, 2)}, r"`split\[0\]` must be an integer of at least 0"),
        ({"split": {"train": ["domain1"], "test": ["domain1"]}}, "'train' and 'test' share 1 classes"),
        ({"split": {"train": ["domain11"]}}, "such as 'domain11'"),
        ({"seed": -1}, "`seed` must be"),
    ],
)
def test_errors(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        clinc150(folder, **arguments)


def test_says_what_to_put_where(folder, monkeypatch, tmp_path):
    (folder / "domains.json").write_text(json.dumps({"domain0": DOMAINS["domain0"]}))
    with pytest.raises(ValueError, match="names no domain of 27 intents, such as 'intent10'"):
        clinc150(folder)
    (folder / "domains.json").unlink()
    with pytest.raises(ValueError, match="missing: domains.json. Both are in the folder `data` of https://github.com"):
        clinc150(folder)
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="`clinc_oos` is not prepared.*download=False"):
        clinc150(data_dir=str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "keras-maml\[datasets\]"'):
        clinc150()


def test_the_real_set():
    directory = os.environ.get("KERAS_MAML_CLINC150")
    if not directory:
        pytest.skip("KERAS_MAML_CLINC150 names no folder with data_full.json and domains.json")
    splits = clinc150(directory, out_of_scope=True)
    assert {name: len(texts) for name, (texts, _, _) in splits.items()} == {
        "train": 11250,
        "validation": 4500,
        "test": 6750,
        "out_of_scope": 1200,
    }
    for name, (_, intents, domains) in splits.items():
        counts = np.unique(intents, return_counts=True)[1]
        assert name == "out_of_scope" or (set(counts) == {150} and len(counts) == 15 * len(np.unique(domains)))
