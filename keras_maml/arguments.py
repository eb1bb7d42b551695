"""Checks of single arguments: each raises a `ValueError` that names the argument and what came."""

import numbers


def check_positive(name, value, optional=False):
    """A positive finite number, or `None` where that may be."""
    if value is None and optional:
        return
    if not _is_number(value) or not 0 < value < float("inf"):
        kind = "a positive number, or None" if optional else "a positive number"
        raise ValueError(f"`{name}` must be {kind}. Received: {name}={value!r}.")


def check_whole(least, **values):
    """Raises `ValueError` unless each of the named values is an integer of at least `least`."""
    for name, value in values.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not least <= value < 2**63:
            raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}.")


def check_not_negative(name, value):
    """A finite number of at least 0."""
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number of at least 0. Received: {name}={value!r}.")


def check_fraction(name, value):
    """A number in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={value!r}.")


def check_share(name, value):
    """A share of a run in (0, 1], or `None`."""
    if value is not None and (not _is_number(value) or not 0 < value <= 1):
        raise ValueError(f"`{name}` must be a share of the run in (0, 1], or None. Received: {name}={value!r}.")


def check_progress(value):
    """The share of a run that has passed, in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(
            "`progress` must be the share of the run that has passed, a number in [0, 1]. Received: "
            f"progress={value!r}."
        )


def check_flag(name, value):
    """`True` or `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be `True` or `False`. Received: {name}={value!r}.")


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
