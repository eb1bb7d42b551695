"""What is in a dataset of episodes, in numbers."""

import math

import numpy as np
import tensorflow as tf

from keras_maml.arguments import check_whole
from keras_maml.episodes.inspecting import class_labels, domain_names, is_batch, read_batches

WIDTH = 80
COUNTS = {
    "ways": "ways",
    "shots": "shots (supports of a class)",
    "queries_of_a_class": "queries of a class",
    "supports": "supports of a task",
    "queries": "queries of a task",
}


def describe(dataset, batches=10, print_fn=print):
    """Prints what a dataset of episodes holds, as `keras.Model.summary` does for a model.

        keras_maml.episodes.describe(train)

    Padding, rows of weight 0, counts as padding and as nothing else.

    Args:
        dataset: a `tf.data.Dataset` of episode batches `(x, y)` or `(x, y, sample_weight)`, one of ours or any other;
            an iterable of such batches, as a list or a `keras.utils.PyDataset`; or one batch.
        batches: how many batches are looked at, at least 1.
        print_fn: what each line is given to.

    Returns:
        A dict of what is printed. `"length"`: number of batches, `math.inf`, or `None` if it is unknown. `"tasks"`: the
        numbers of tasks that batches have. `"arrays"`: `{name: (shape, dtype)}`, `None` where a shape differs between
        batches. `"values"`: `{name: (least, greatest)}`. `"not_finite"`: `{name: examples with NaN or infinite
        values}`, where there are any. `"episodes"`: how many were looked at. `"supports"`, `"queries"`: of a task,
        `(least, mean, greatest)`. `"padding"`: share of the rows, `{"support": ..., "query": ...}`. `"domains"`:
        episodes by domain, if there are any. For class labels, integers or one-hot, also `"ways"`, `"shots"` and
        `"queries_of_a_class"`, `(least, mean, greatest)`; `"supports_by_label"`; `"labels"`, `(least, greatest)`;
        `"from_zero"`, whether the labels of every task are `0 .. ways - 1`; `"unsupported"`, tasks that ask for a
        class without a support.

    Raises:
        ValueError: if there is no batch, or one that is no episode batch.
    """
    check_whole(1, batches=batches)
    looked_at = read_batches(dataset, batches)
    facts = _facts(looked_at)
    facts = {"length": _length(dataset), **facts}
    domains = [batch.domain for batch in looked_at if batch.domain is not None]
    if domains:
        facts["domains"] = _domains(np.concatenate(domains), domain_names(dataset))
    for line in _lines(facts):
        print_fn(line)
    return facts


def _length(dataset):
    if isinstance(dataset, tf.data.Dataset):
        length = int(dataset.cardinality())
        return {tf.data.INFINITE_CARDINALITY: math.inf, tf.data.UNKNOWN_CARDINALITY: None}.get(length, length)
    if is_batch(dataset):
        return 1
    return len(dataset) if hasattr(dataset, "__len__") else None


def _facts(batches):
    supports, queries = [batch.support for batch in batches], [batch.query for batch in batches]
    counts = [np.concatenate([part.real.sum(1) for part in parts]) for parts in (supports, queries)]
    rows = [sum(part.real.size for part in parts) for parts in (supports, queries)]
    padding = [1 - float(count.sum()) / row for count, row in zip(counts, rows, strict=True)]
    facts = {
        "tasks": sorted({batch.tasks for batch in batches}),
        "arrays": _arrays(batches),
        **_values(batches),
        "episodes": sum(batch.tasks for batch in batches),
        "supports": _range(counts[0]),
        "queries": _range(counts[1]),
        "padding": dict(zip(("support", "query"), padding, strict=True)),
    }
    labels = class_labels([part.targets for part in supports + queries])
    if labels is not None:
        facts |= _class_facts(supports, labels[: len(supports)], queries, labels[len(supports) :])
    return facts


def _arrays(batches):
    """`{name: (shape, dtype)}`, in the order of an element."""
    shapes, dtypes = {}, {}
    for batch in batches:
        named = {name: array for name, (array, _) in batch.arrays().items()} | batch.weights
        named |= {} if batch.domain is None else {"domain": batch.domain}
        for name, array in named.items():
            shapes.setdefault(name, set()).add(array.shape)
            dtypes[name] = "string" if array.dtype.kind in "OSU" else array.dtype.name
    return {name: (_common(found), dtypes[name]) for name, found in shapes.items()}


def _common(shapes):
    if len({len(shape) for shape in shapes}) > 1:
        return None
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def _values(batches):
    """Ranges of all numbers that are not padding, and how many examples hold others than finite ones."""
    values, not_finite = {}, {}
    for name, (array, real) in ((n, a) for batch in batches for n, a in batch.arrays().items()):
        if array.dtype.kind not in "iubf" or not real.any():
            continue
        examples = array[real]
        finite = np.isfinite(examples)
        if not finite.all():
            wrong = ~finite.reshape(len(examples), -1).all(1)
            not_finite[name] = not_finite.get(name, 0) + int(wrong.sum())
            examples = examples[finite]
        if examples.size:
            least, greatest = values.get(name, (math.inf, -math.inf))
            values[name] = (min(least, examples.min().item()), max(greatest, examples.max().item()))
    return {"values": values, "not_finite": not_finite}


def _class_facts(supports, support_labels, queries, query_labels):
    ways, shots, asked, by_label, seen = [], [], [], {}, set()
    from_zero, unsupported = True, 0
    for part, labels, query, wanted in zip(supports, support_labels, queries, query_labels, strict=True):
        for task in range(len(labels)):
            names, counts = np.unique(labels[task][part.real[task]], return_counts=True)
            query_names, query_counts = np.unique(wanted[task][query.real[task]], return_counts=True)
            ways.append(len(names))
            shots.extend(counts)
            asked.extend(query_counts)
            for name, count in zip(names.tolist(), counts.tolist(), strict=True):
                by_label[name] = by_label.get(name, 0) + count
            seen |= {*names.tolist(), *query_names.tolist()}
            from_zero &= names.tolist() == list(range(len(names)))
            unsupported += not set(query_names.tolist()) <= set(names.tolist())
    return {
        "ways": _range(ways),
        "shots": _range(shots),
        "queries_of_a_class": _range(asked),
        "supports_by_label": dict(sorted(by_label.items())),
        "labels": (min(seen), max(seen)) if seen else None,
        "from_zero": from_zero,
        "unsupported": unsupported,
    }


def _range(values):
    return (int(np.min(values)), float(np.mean(values)), int(np.max(values))) if len(values) else (0, 0.0, 0)


def _domains(ids, names):
    found, counts = np.unique(ids, return_counts=True)
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return {names[i] if 0 <= i < len(names) else i: n for i, n in pairs}


def _lines(facts):
    """The printout, at most 80 columns wide."""
    rule = "-" * WIDTH
    kind = "classification" if "ways" in facts else "regression"
    length = {math.inf: "infinitely many batches", None: "batches"}.get(facts["length"])
    length = length or _counted(facts["length"], "batch", "batches")
    *others, tasks = facts["tasks"]
    tasks = "".join(f"{n} or " for n in others) + _counted(tasks, "task")
    yield f"Episodes of {kind}: {length} of {tasks}"
    yield rule
    yield from _table([("array", "shape", "dtype", "values"), *_array_rows(facts)])
    for name, count in facts["not_finite"].items():
        yield f"! {name}: NaN or infinite values in {_counted(count, 'example')}"
    yield rule
    heading = (f"in {_counted(facts['episodes'], 'episode')}", "least", "mean", "greatest")
    numbers = [(text, *_three(facts[name])) for name, text in COUNTS.items() if name in facts]
    yield from _table([heading, *numbers], right=True)
    yield rule
    yield from _table(list(_notes(facts)))
    if facts.get("unsupported"):
        yield f"! a class without a support has queries in {_counted(facts['unsupported'], 'task')}"


def _counted(number, one, several=None):
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _array_rows(facts):
    for name, (shape, dtype) in facts["arrays"].items():
        limits = [f"{value:.4g}" for value in facts["values"].get(name, ())]
        yield name, _shape(shape), dtype, " to ".join(dict.fromkeys(limits))


def _shape(shape):
    if shape is None:
        return "of several ranks"
    return f"({', '.join('?' if n is None else str(n) for n in shape)}{',' * (len(shape) == 1)})"


def _three(values):
    least, mean, greatest = values
    return f"{least:,}", f"{mean:,.1f}" if least != greatest else f"{least:,}", f"{greatest:,}"


def _notes(facts):
    if facts.get("labels"):
        least, greatest = facts["labels"]
        told = "0 to ways - 1 in every task" if facts["from_zero"] else "not 0 to ways - 1 in every task"
        yield "labels", f"{least} to {greatest}, {told}"
        yield from _wrapped("supports by label", [f"{k}: {n:,}" for k, n in facts["supports_by_label"].items()])
    shares = [f"{100 * share:.0f} % of {part} rows" for part, share in facts["padding"].items() if share]
    yield "padding", ", ".join(shares) or "none"
    episodes = facts["episodes"]
    domains = [f"{name}: {n:,} ({100 * n / episodes:.0f} %)" for name, n in facts.get("domains", {}).items()]
    yield from _wrapped("episodes by domain", domains)


def _wrapped(name, items, lines=3):
    """Items side by side on a few lines; of those that do not fit, how many there are."""
    rows = [[]]
    for position, item in enumerate(items):
        if len("  ".join([*rows[-1], item])) > WIDTH - 24:
            if len(rows) == lines:
                rows.append([f"and {len(items) - position:,} more"])
                break
            rows.append([])
        rows[-1].append(item)
    for row in rows if items else ():
        yield name, "  ".join(row)
        name = ""


def _table(rows, right=False):
    """Rows in columns: the first, too long names shortened, to the left, the others too, or to the `right`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    for first, *others in rows:
        first = first if len(first) <= widths[0] else first[: widths[0] - 3] + "..."
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(max(8, w)) if right else cell.ljust(w) for cell, w in zip(others, widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
