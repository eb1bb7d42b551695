"""Episodes of tables: a pandas DataFrame, a CSV file, or columns."""

import csv
import os

import numpy as np

from keras_maml.episodes.arrays import check_group_sampling, check_sampling, from_arrays, from_groups


def from_table(table, target, features=None, group=None, **sampling):
    """Episodes of the rows of a table: by class, or one task a group.

        train = keras_maml.episodes.from_table("plants.csv", "species", ways=5, shots=1, queries=15, tasks=32)
        train = keras_maml.episodes.from_table(ratings, "stars", group="user", shots=5, queries=10, tasks=32)

    Args:
        table: see `read_table`, and so `features`.
        target: column of the classes, or with a `group` of the targets or class numbers.
        group: `None`, or the column that says whose a row is: every user, device or store is a task, see `from_groups`.
        **sampling: the arguments of `keras_maml.episodes.from_arrays` from `ways` on, or those of
            `keras_maml.episodes.from_groups` from `shots` on.

    Returns:
        A `tf.data.Dataset`, see `from_arrays` and `from_groups`. Raises what they and `read_table` do.
    """
    if group is None:
        check_sampling(**sampling)
        return from_arrays(*read_table(table, target, features), **sampling)
    check_group_sampling(**sampling)
    return from_groups(*read_table(table, target, features, group), **sampling)


def read_table(table, target, features=None, group=None):
    """Reads a table into arrays.

    Args:
        table: a pandas DataFrame, the path of a CSV file whose first line names the columns (read without pandas), or a
            dict of columns.
        target: name of the column to predict.
        features: names of the columns that a model sees, numbers all; a dict of such lists for a model with several
            inputs; `None`: all but `target` and `group`.
        group: name of the column of groups, or `None`.

    Returns:
        `(x, y)` or `(x, y, groups)`: `float32` `(N, features)` or a dict of such; numbers or strings `(N,)`.

    Raises:
        ValueError: if the table is empty or ragged, a column is missing or named twice, a value is missing, or a
            feature is no number.
    """
    columns = _columns(table)
    if isinstance(table, (str, os.PathLike)):
        names = {group} if group is not None else {target}
        columns = {name: _labels(text) if name in names else _parsed(text) for name, text in columns.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if not columns or not min(lengths.values()):
        raise ValueError(f"The table is empty. Received: {len(columns)} columns without a row.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of a table must be of one length. Received: {lengths}.")
    y = _column(columns, target, "target")
    groups = () if group is None else (_column(columns, group, "group"),)
    inputs = [name for name in columns if name not in (target, group)] if features is None else features
    if isinstance(inputs, dict):
        return {name: _features(columns, names) for name, names in inputs.items()}, y, *groups
    return _features(columns, inputs), y, *groups


def _columns(table):
    """A dict of columns, `(N,)` numpy arrays of numbers or strings."""
    if isinstance(table, (str, os.PathLike)):
        return _read_csv(table)
    if isinstance(table, dict):
        return {name: np.asarray(column) for name, column in table.items()}
    if hasattr(table, "columns") and hasattr(table, "to_numpy"):
        names = list(table.columns)
        _check_names(names)
        return {name: table[name].to_numpy() for name in names}
    raise ValueError(
        f"`table` must be a pandas DataFrame, the path of a CSV file or a dict of columns. Received: "
        f"{type(table).__name__}."
    )


def _read_csv(path):
    if not os.path.isfile(path):
        raise ValueError(f"'{path}' is no file. Expected a CSV file whose first line names the columns.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _read_rows(path, csv.reader(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not written in UTF-8 ({error}). Convert it, or read it by pandas.") from error


def _read_rows(path, reader):
    names = next(reader, [])
    _check_names(names)
    rows = []
    for row in reader:
        if len(row) != len(names) and row:
            raise ValueError(
                f"Line {reader.line_num} of '{path}' has {len(row)} values, and the first line names {len(names)} "
                "columns."
            )
        if row:
            rows.append(row)
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return {name: np.array(column, str) for name, column in zip(names, columns, strict=True)}


def _labels(values):
    """Strings of a CSV file as integers if they are written as integers are, else as they are: "07" and "7" differ."""
    try:
        numbers = values.astype("int64")
    except (ValueError, OverflowError):
        return values
    return numbers if (numbers.astype(str) == values).all() else values


def _parsed(values):
    """Strings of a CSV file as integers, else as numbers, else as they are; what is empty is missing, NaN or `""`."""
    filled = values != ""
    for dtype in ("int64", "float64"):
        try:
            numbers = values[filled].astype(dtype)
        except (ValueError, OverflowError):
            continue
        if filled.all():
            return numbers
        result = np.full(len(values), np.nan)
        result[filled] = numbers
        return result
    return values


def _check_names(names):
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Columns of a table must have different names. Received: {twice} more than once.")


def _column(columns, name, role):
    if name not in columns:
        raise ValueError(f"There is no column {name!r} for `{role}`. Received columns: {list(columns)}.")
    column = columns[name]
    if column.dtype.kind == "b":
        column = column.astype("int64")
    missing = _missing(column)
    if missing.any():
        raise ValueError(
            f"Column {name!r} has {missing.sum()} missing values of {len(column)}, the first in row "
            f"{np.flatnonzero(missing)[0]}. Leave those rows out, or fill them in."
        )
    return column


def _missing(column):
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind == "O":
        return np.array([_is_missing(value) for value in column.tolist()])
    return column == "" if column.dtype.kind == "U" else np.zeros(len(column), bool)


def _is_missing(value):
    # `pandas.NA` is neither equal to itself nor unequal.
    return value is None or type(value).__name__ == "NAType" or value != value or value == ""


def _features(columns, names):
    """`(N, features)`, `float32`."""
    if isinstance(names, str) or not len(names):
        raise ValueError(f"`features` must be a list of columns, or a dict of lists. Received: {names!r}.")
    found = {name: _column(columns, name, "features") for name in names}
    wrong = [name for name, column in found.items() if column.dtype.kind not in "iuf"]
    if wrong:
        raise ValueError(
            f"Columns {wrong} are no numbers. Encode them beforehand, for instance by keras.layers.StringLookup or "
            "keras.utils.FeatureSpace, or name the columns to use by `features`."
        )
    return np.stack(list(found.values()), 1).astype("float32")
