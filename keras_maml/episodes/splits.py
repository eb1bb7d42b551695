"""Parting classes, so that a learner is judged on classes that it has never seen, and checking that it is so."""

import numbers

import numpy as np
import tensorflow as tf

from keras_maml.arguments import check_whole
from keras_maml.episodes.checks import check_alike, names_of
from keras_maml.episodes.draws import uniform
from keras_maml.episodes.pipeline import Plan


def split_classes(labels, parts, seed=0, exclude=(), allow_overlap=False):
    """Parts the classes of a set, for the argument `classes` of `from_arrays`.

        classes = keras_maml.episodes.split_classes(labels, {"train": 64, "validation": 16, "test": 20}, seed=0)
        train = keras_maml.episodes.from_arrays(x, labels, 5, 1, 15, tasks=32, seed=0, classes=classes["train"])

    Classes are shuffled by `seed`, those that are asked for by name aside, and dealt out in the order of the parts.

    Args:
        labels: `(N,)` integers or strings, of the examples or of the classes: repeats do not matter.
        parts: a dict of what each part gets: a number of classes (`int`), a share of all classes that are not excluded
            (`float` in (0, 1], rounded down), or the classes themselves (a sequence of labels).
        seed: 0 or more. The split depends on it and on the classes, not on the order of examples.
        exclude: labels that no part may have, such as those of a set that a model was trained on before.
        allow_overlap: whether parts that are given by name may share classes.

    Returns:
        A dict of sorted arrays of labels by part.

    Raises:
        ValueError: if parts share a class, a class does not occur or is excluded, a part is empty, or the classes do
            not suffice.
    """
    check_whole(0, seed=seed)
    names = np.unique(names_of(labels))
    if not isinstance(parts, dict) or not parts:
        raise ValueError(
            f'`parts` must be a dict such as {{"train": 64, "validation": 16, "test": 20}}. Received: {parts!r}.'
        )
    exclude = () if exclude is None else list(exclude) if isinstance(exclude, (set, frozenset)) else exclude
    excluded = _known(exclude, names, "exclude") if np.size(exclude) else names[:0]
    free = np.setdiff1d(names, excluded)
    total = len(free)
    result = {part: _known(asked, names, part) for part, asked in parts.items() if _is_named(asked)}
    for part, classes in result.items():
        both = np.intersect1d(classes, excluded)
        if len(both):
            raise ValueError(f"Part '{part}' has {len(both)} classes of `exclude`, such as {both[0].item()!r}.")
        free = np.setdiff1d(free, classes)
    if not allow_overlap:
        check_disjoint(**result)
    free = free[np.argsort(uniform(seed, np.arange(len(free)), 1)[0], kind="stable")]
    for part, asked in parts.items():
        if part not in result:
            count = _count(part, asked, total)
            if count > len(free):
                raise ValueError(
                    f"Part '{part}' asks for {count} classes. Received: {len(names)} classes, of which {len(excluded)} "
                    f"are excluded and {len(free)} are left for it. Ask for fewer."
                )
            result[part], free = np.sort(free[:count]), free[count:]
    return {part: result[part] for part in parts}


def check_disjoint(**parts):
    """Refuses parts that share classes.

    Classes of datasets are compared by their examples, whatever they are called: two parts that number their classes
    from 0 do not clash, and the same class under two names does. `MetaModel.fit` so checks its `validation_data`. Not
    seen is a class whose examples were parted, some here and some there, or changed: pass labels to compare names.

        keras_maml.episodes.check_disjoint(train=train, validation=validation, test=test)

    Args:
        **parts: datasets as the builders return them, or arrays of labels.

    Raises:
        ValueError: naming two parts, how many classes they share, and one of them.
    """
    known = {name: _classes(name, part) for name, part in parts.items()}
    names = list(known)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if isinstance(parts[one], tf.data.Dataset) != isinstance(parts[other], tf.data.Dataset):
                raise ValueError(
                    f"Datasets are compared with datasets and labels with labels. Received: '{one}' is a "
                    f"{type(parts[one]).__name__}, '{other}' a {type(parts[other]).__name__}."
                )
            if not isinstance(parts[one], tf.data.Dataset) and {*map(str, known[one])} & {*map(str, known[other])}:
                check_alike(other, np.array([*known[other]]), np.array([*known[one]]))
            both = [key for key in known[one] if key in known[other]]
            if both:
                raise ValueError(
                    f"'{one}' and '{other}' share {len(both)} classes of {len(known[one])} and {len(known[other])}, "
                    f"such as {known[one][both[0]]!r}: a learner would be judged on what it was trained on. Part the "
                    "classes, for instance by `keras_maml.episodes.split_classes`."
                )


def _classes(name, part):
    if isinstance(part, tf.data.Dataset):
        plan = getattr(part, "plan", None)
        if not isinstance(plan, Plan):
            raise ValueError(
                f"The classes of '{name}' are not known any more: its dataset was changed after a builder of "
                "`keras_maml.episodes` returned it. Pass what the builder returned, or the labels."
            )
        return plan.classes
    return {label.item(): label.item() for label in np.unique(names_of(part))}


def _is_named(asked):
    return not isinstance(asked, numbers.Number)


def _known(asked, names, part):
    asked = np.unique(names_of(asked, part))
    check_alike(part, asked, names)
    unknown = asked[~np.isin(asked, names)]
    if len(unknown) or not len(asked):
        example = f", such as {unknown[0].item()!r}" if len(unknown) else ""
        raise ValueError(
            f"'{part}' must name classes that occur. Received: {len(asked)} classes, of which {len(unknown)} do not "
            f"occur{example}."
        )
    return asked


def _count(part, asked, total):
    if isinstance(asked, numbers.Integral):
        check_whole(1, **{part: asked})
        return int(asked)
    count = int(asked * total + 1e-9) if 0 < asked <= 1 else 0
    if not count:
        raise ValueError(
            f"Part '{part}' must get a number of classes, a share in (0, 1] that is at least one class, or a list of "
            f"labels. Received: {asked!r} of {total} classes."
        )
    return count
