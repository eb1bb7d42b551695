"""What is in a dataset of episodes, in numbers."""

import keras
import numpy as np
import tensorflow as tf

WIDTH = 78


def describe(dataset, batches=10, print_fn=print):
    """Prints what a dataset of episodes holds, as `keras.Model.summary` does for a model.

    Args:
        dataset: any `tf.data.Dataset` of episode batches `(x, y)` or `(x, y, sample_weight)`, see
            `keras_maml.MetaModel`.
        batches: how many batches are looked at, at least 1.
        print_fn: what each line is given to.

    Returns:
        A dict of what is printed: `"shapes"`, `"length"`, `"tasks"`, and over the tasks that were looked at
        `"episodes"`, their number, `"supports"`, `"queries"`, and for class labels `"ways"`, `"shots"`,
        `"queries_of_a_class"`, each `(least, mean, greatest)`; `"labels"`, `(least, greatest)`; `"supports_by_label"`;
        `"padding"`, shares of the rows by part; `"values"`, `(least, greatest)` of every array of x; `"domains"`,
        episodes by domain.

    Raises:
        ValueError: if the dataset holds no episode batches.
    """
    elements = [episode_parts(element) for element in dataset.take(batches).as_numpy_iterator()]
    if not elements:
        raise ValueError("The dataset holds no batch.")
    facts = _facts(dataset, elements)
    for line in _lines(facts):
        print_fn(line)
    return facts


def episode_parts(element):
    """`(x, y, sample_weight)` of a batch, or an error that says what one is."""
    parts = element if isinstance(element, tuple) else (element,)
    x = parts[0]
    if not isinstance(x, dict) or not {"support_x", "support_y", "query_x"} <= set(x) or not 2 <= len(parts) <= 3:
        came = sorted(map(str, x)) if isinstance(x, dict) else type(x).__name__
        raise ValueError(
            'An episode batch is ({"support_x": (T, S, ...), "support_y": (T, S, ...), "query_x": (T, Q, ...)}, '
            "query_y: (T, Q, ...)), or the same with a sample_weight (T, Q) behind. Received: "
            f"{len(parts)} parts, the first {came}."
        )
    weight = parts[2] if len(parts) == 3 else x.get("query_weight")
    return x, parts[1], weight


def _facts(dataset, elements):
    length = int(dataset.cardinality())
    unusual = {tf.data.INFINITE_CARDINALITY: "infinitely many", tf.data.UNKNOWN_CARDINALITY: "unknown number of"}
    facts = {
        "shapes": _shapes(dataset.element_spec),
        "length": unusual.get(length, length),
        "tasks": sorted({len(first_output(x["support_y"])) for x, _, _ in elements}),
        "episodes": sum(len(first_output(x["support_y"])) for x, _, _ in elements),
    }
    support = [(first_output(x["support_y"]), x.get("support_weight")) for x, _, _ in elements]
    query = [(first_output(y), weight) for _, y, weight in elements]
    facts["supports"], facts["queries"] = _range(_sizes(support)), _range(_sizes(query))
    facts["padding"] = {"support": _padding(support), "query": _padding(query)}
    if all(_are_classes(y) for y, _ in support + query):
        facts |= _class_facts(support, query)
    facts["values"] = _values([x for x, _, _ in elements])
    domains = [x["domain"] for x, _, _ in elements if "domain" in x]
    if domains:
        facts["domains"] = _domains(np.concatenate(domains), getattr(getattr(dataset, "plan", None), "domains", ()))
    return facts


def _shapes(spec):
    x, *rest = spec
    named = {**x, **dict(zip(("y", "sample_weight"), rest, strict=False))}
    return {
        name + "".join(f"[{key!r}]" for key in path): (tuple(leaf.shape), leaf.dtype.name)
        for name, structure in named.items()
        for path, leaf in keras.tree.flatten_with_path(structure)
    }


def first_output(structure):
    """The labels of the first output."""
    return keras.tree.flatten(structure)[0]


def _sizes(part):
    return np.concatenate([(np.ones(y.shape[:2]) if w is None else w > 0).sum(1) for y, w in part])


def _padding(part):
    weights = [(w == 0).ravel() for _, w in part if w is not None]
    return float(np.mean(np.concatenate(weights))) if weights else 0.0


def _are_classes(y):
    """Integers, or one-hot rows."""
    return y.ndim == 2 and y.dtype.kind in "iu" or _is_one_hot(y)


def _is_one_hot(y):
    return y.ndim == 3 and y.shape[2] > 1 and set(np.unique(y)) <= {0, 1} and (y.sum(-1) <= 1).all()


def _class_facts(support, query):
    ways, counts, by_label = [], {"shots": [], "queries_of_a_class": []}, {}
    least, greatest = np.inf, -np.inf
    for (support_y, support_w), (query_y, query_w) in zip(support, query, strict=True):
        for task in range(len(support_y)):
            found = [labels_of(support_y, support_w, task), labels_of(query_y, query_w, task)]
            both = np.concatenate(found)
            ways.append(len(np.unique(found[0])))
            for name, labels in zip(counts, found, strict=True):
                counts[name].extend(np.unique(labels, return_counts=True)[1])
            for label, count in zip(*np.unique(found[0], return_counts=True), strict=True):
                by_label[int(label)] = by_label.get(int(label), 0) + int(count)
            least, greatest = min(least, both.min()), max(greatest, both.max())
    return {
        "ways": _range(ways),
        **{name: _range(values) for name, values in counts.items()},
        "labels": (int(least), int(greatest)),
        "supports_by_label": dict(sorted(by_label.items())),
    }


def labels_of(y, weight, task):
    """Class labels of one task, of integers or one-hot rows, without padding."""
    labels = y[task].argmax(-1) if y.ndim == 3 else y[task]
    return labels if weight is None else labels[weight[task] > 0]


def _range(values):
    return (int(np.min(values)), float(np.mean(values)), int(np.max(values)))


def _values(xs):
    values = {}
    for part in ("support_x", "query_x"):
        for x in xs:
            for path, leaf in keras.tree.flatten_with_path(x[part]):
                if leaf.dtype.kind in "iufb":
                    name = part + "".join(f"[{key!r}]" for key in path)
                    low, high = values.get(name, (np.inf, -np.inf))
                    values[name] = (min(low, leaf.min().item()), max(high, leaf.max().item()))
    return values


def _domains(ids, names):
    found, counts = np.unique(ids, return_counts=True)
    return {names[i] if i < len(names) else int(i): int(n) for i, n in zip(found, counts, strict=True)}


def _lines(facts):
    """The printout, at most 80 columns wide but for long names."""

    def row(name, value):
        return f"  {name:<22} {value}"

    length = facts["length"]
    tasks = " or ".join(map(str, facts["tasks"]))
    yield "Episodes".ljust(24, " ") + f" {length} batches of {tasks} tasks"
    yield "-" * WIDTH
    for name, (shape, dtype) in facts["shapes"].items():
        yield row(name, f"{_shape(shape):<28} {dtype:<9} {_interval(facts['values'].get(name))}".rstrip())
    yield "-" * WIDTH
    yield f"In {facts['episodes']} episodes: least / mean / greatest"
    for name, text in (
        ("ways", "ways"),
        ("shots", "shots of a class"),
        ("queries_of_a_class", "queries of a class"),
        ("supports", "supports of a task"),
        ("queries", "queries of a task"),
    ):
        if name in facts:
            yield row(text, _three(facts[name]))
    if "labels" in facts:
        yield row("labels", f"{facts['labels'][0]} to {facts['labels'][1]}")
        yield row("supports by label", _shortened(facts["supports_by_label"]))
    padding = facts["padding"]
    yield row("padding", f"{100 * padding['support']:.0f} % of supports, {100 * padding['query']:.0f} % of queries")
    for name, count in facts.get("domains", {}).items():
        yield row(f"domain {name}", f"{count} episodes, {100 * count / facts['episodes']:.0f} %")


def _shape(shape):
    return f"({', '.join('?' if n is None else str(n) for n in shape)}{',' if len(shape) == 1 else ''})"


def _interval(limits):
    return "" if limits is None else f"{limits[0]:.4g} to {limits[1]:.4g}"


def _three(values):
    least, mean, greatest = values
    return f"{least}" if least == greatest else f"{least} / {mean:.1f} / {greatest}"


def _shortened(counts):
    shown = [f"{label}: {count}" for label, count in counts.items()]
    more = f", and {len(shown) - 6} more labels" if len(shown) > 6 else ""
    return ", ".join(shown[:6]) + more
