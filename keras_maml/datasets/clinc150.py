"""CLINC150: what users ask an assistant, 150 intents of ten domains, 150 queries of each intent."""

import json
import pathlib

import numpy as np

from keras_maml.arguments import check_whole
from keras_maml.episodes.draws import uniform
from keras_maml.episodes.splits import split_classes

PARTS = ("train", "validation", "test")
FILES = ("data_full.json", "domains.json")
SOURCE = "https://github.com/clinc/oos-eval"
OUT_OF_SCOPE = "oos"


def clinc150(directory=None, split=(5, 2, 3), seed=0, out_of_scope=False, data_dir=None, download=False):
    """CLINC150 split by domain, as texts ready for `keras_maml.episodes.from_text`.

        splits = keras_maml.datasets.clinc150("clinc150")
        texts, intents, domains = splits["train"]
        train = keras_maml.episodes.from_text(texts, intents, vectorize, ways=5, shots=1, queries=15, tasks=16, seed=0)

    No domain is in two parts, so the intents to be told apart at test belong to domains that a learner has never seen:
    travel, say, after banking and cooking. `within=domains` makes episodes of intents of one domain, which are harder
    than those of several. All queries of an intent that the set has are pooled, 150 each: the set's own split parts the
    queries of every intent, which serves classification and not few-shot learning.

    Args:
        directory: folder that holds `data_full.json` and `domains.json` of the set; `None`: tensorflow-datasets.
        split: `(train, validation, test)`, how many of the ten domains go to each after a shuffle by `seed`; a count of
            0 leaves the part out. Or a dict of lists of domains by part.
        seed: 0 or more; unused where `split` names the domains.
        out_of_scope: whether there is also a part `"out_of_scope"`: the 1,200 queries that belong to no intent, each
            with the intent and the domain `"oos"`. Otherwise they are left out.
        data_dir: folder of tensorflow-datasets with `clinc_oos`; unused with a `directory`.
        download: whether tensorflow-datasets may fetch and prepare the set.

    Returns:
        A dict of `(texts, intents, domains)` by part, each `(N,)` of strings.

    Raises:
        ImportError: if there is no `directory` and tensorflow-datasets is not installed.
        ValueError: if files are missing, parts share a domain, or an argument is out of range.

    References:
        - Larson et al. 2019, "An evaluation dataset for intent classification and out-of-scope prediction",
          arXiv:1909.02027 (the data, under the licence CC BY 3.0)
    """
    check_whole(0, seed=seed)
    texts, intents, domains = _read_files(directory) if directory is not None else _read_tfds(data_dir, download)
    real = intents != OUT_OF_SCOPE
    parts = _parts(np.unique(domains[real]), split, seed)
    rows = {name: real & np.isin(domains, chosen) for name, chosen in parts.items()}
    if out_of_scope:
        rows["out_of_scope"] = ~real
    return {name: (texts[chosen], intents[chosen], domains[chosen]) for name, chosen in rows.items()}


def _parts(domains, split, seed):
    if isinstance(split, dict):
        return split_classes(domains, split)
    counts = tuple(split) if isinstance(split, (tuple, list)) else ()
    if len(counts) != 3:
        raise ValueError(
            f"`split` must be (train, validation, test) counts of domains, or a dict of lists of domains by part. "
            f"Received: split={split!r}."
        )
    check_whole(0, **{f"split[{i}]": count for i, count in enumerate(counts)})
    if not 0 < sum(counts) <= len(domains):
        raise ValueError(f"`split` must have 1 to {len(domains)} domains together. Received: split={split!r}.")
    shuffled = domains[np.argsort(uniform(seed, np.arange(len(domains)), 1)[0])]
    ends = np.cumsum(counts)
    parts = {name: shuffled[end - n : end] for name, n, end in zip(PARTS, counts, ends, strict=True)}
    return {name: chosen for name, chosen in parts.items() if len(chosen)}


def _read_files(directory):
    directory = pathlib.Path(directory).expanduser()
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"'{directory}' must hold {' and '.join(FILES)}; missing: {', '.join(missing)}. Both are in the folder "
            f"`data` of {SOURCE}; download them by hand, or leave `directory` out to read `clinc_oos` by "
            "tensorflow-datasets."
        )
    data, by_domain = (json.loads((directory / name).read_text(encoding="utf-8")) for name in FILES)
    domain_of = {intent: domain for domain, intents in by_domain.items() for intent in intents}
    domain_of[OUT_OF_SCOPE] = OUT_OF_SCOPE
    pairs = [pair for queries in data.values() for pair in queries]
    unknown = sorted({intent for _, intent in pairs} - set(domain_of))
    if unknown:
        raise ValueError(f"domains.json names no domain of {len(unknown)} intents, such as '{unknown[0]}'.")
    texts, intents = (np.array(column) for column in zip(*pairs, strict=True))
    return texts, intents, np.array([domain_of[intent] for intent in intents])


def _read_tfds(data_dir, download):
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError('tensorflow-datasets is not installed: pip install "keras-maml[datasets]"') from error
    builder = tensorflow_datasets.builder("clinc_oos", data_dir=data_dir)
    if download:
        builder.download_and_prepare()
    columns = {"text": [], "intent_name": [], "domain_name": []}
    for split in ("train", "train_oos", "validation", "validation_oos", "test", "test_oos"):
        try:
            dataset = builder.as_dataset(split=split)
        except AssertionError as error:  # of files that are not there
            raise ValueError(
                f"`clinc_oos` is not prepared. Received: {data_dir=}, {download=}. Set `download=True`, `data_dir` to "
                f"the folder that holds it, or `directory` to one with {' and '.join(FILES)} of {SOURCE}."
            ) from error
        for query in dataset.as_numpy_iterator():
            for name, column in columns.items():
                column.append(query[name].decode("utf-8"))
    texts, intents, domains = (np.array(column) for column in columns.values())
    return texts, intents, np.where(intents == OUT_OF_SCOPE, OUT_OF_SCOPE, domains)
