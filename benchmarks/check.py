"""Is a meta-gradient right? Compares those of an implementation in float32 with a reference in float64.

The reference is a loop over tasks in PyTorch, in float64; JAX in float64 confirms it. Float32 may put a value that is
almost 0 on the other side of a ReLU, or choose the other of two almost equal pixels, which moves the gradient of that
task by up to 2e-2. It happens to some tasks, to every other one in five steps of a pooled net with 75 queries; a wrong
formula is wrong in all. So few queries are compared, and an implementation may try pairs of tasks until one is right.
"""

import concurrent.futures
import itertools
import os

import numpy as np

from benchmarks.implementations import ENTRIES
from benchmarks.processes import Failed
from benchmarks.rows import ROWS

TASKS = 4  # those of the smallest batch
QUERIES = 5  # of each: fewer numbers, of which fewer are almost 0
PAIRS = tuple(itertools.combinations(range(TASKS), 2))
# Rounding gives 1e-7 to 2e-5, the smallest wrong formula 4e-4.
TOLERANCE = 1e-4
REFERENCE = "torch_loop"
SECOND_REFERENCE, SECOND_REFERENCE_NAME = "jax", "JAX in float64"


def errors(gradients, reference):
    """How far a meta-gradient is from the right one.

    Args:
        gradients, reference: arrays by name of the weight.

    Returns:
        `{"error", "worst_weight", "worst_weight_error"}`: the norm of the difference over the norm of the reference,
        over all weights; and for the worst weight, relative to its own norm or to a hundredth of the whole (a bias
        before a normalisation has no gradient but rounding).
    """
    norms = {name: np.linalg.norm(value) for name, value in reference.items()}
    # A gradient that is not finite is as wrong as can be, and must not hide in comparisons with NaN.
    differences = {
        name: np.nan_to_num(np.linalg.norm(gradients[name] - value), nan=np.inf) for name, value in reference.items()
    }
    whole = np.linalg.norm(list(norms.values()))
    relative = {name: float(differences[name] / max(norms[name], 0.01 * whole)) for name in norms}
    worst = max(relative, key=relative.get)
    error = float(np.linalg.norm(list(differences.values())) / whole)
    return {"error": error, "worst_weight": worst, "worst_weight_error": relative[worst]}


def check_all(rows, names, start, folder):
    """Compares the meta-gradients of every implementation that applies with the reference, in every row.

    Args:
        rows: names of rows.
        names: names of implementations.
        start: function from a name to a `processes.Process`.
        folder: a `pathlib.Path` for .npz files.

    Returns:
        `{row: {name: {"status", ...}}}`: "right" or "wrong", with what `errors` gives and the number of "pairs" that
        were tried; or "not possible" or "not installed", with a "reason". The second reference is under
        `SECOND_REFERENCE_NAME`.

    Raises:
        processes.Failed: if the reference cannot be had.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        second = pool.submit(_first_tasks, rows, start, folder)
        reference = _reference(rows, start, folder)
        second = second.result()
        futures = {name: pool.submit(_verdicts, rows, name, start, folder, reference) for name in names}
        verdicts = {name: future.result() for name, future in futures.items()}
    result = {}
    for row in rows:
        first = second[row] if isinstance(second[row], dict) else None
        verdict = _failure(second[row]) if first is None else _verdict(first, reference[row][0], pairs=0)
        result[row] = {name: by_row[row] for name, by_row in verdicts.items() if row in by_row}
        result[row][SECOND_REFERENCE_NAME] = verdict
    return result


def _gradient(process, row, dtype, tasks, file):
    process.ask("check", row=row, dtype=dtype, tasks=list(tasks), file=str(file))
    with np.load(file) as arrays:
        return dict(arrays)


def _reference(rows, start, folder):
    """`{row: [gradient of each of the tasks]}`: that of a pair is their mean."""
    process, file = start(REFERENCE), folder / "reference.npz"
    try:
        return {row: [_gradient(process, row, "float64", (task,), file) for task in range(TASKS)] for row in rows}
    finally:
        process.stop()


def _first_tasks(rows, start, folder):
    """`{row: gradient of the first task, or why there is none}` by the second reference."""
    process, file, results = start(SECOND_REFERENCE), folder / "second_reference.npz", {}
    for row in rows:
        try:
            results[row] = _gradient(process, row, "float64", (0,), file)
        except Failed as failure:
            results[row] = str(failure)
    process.stop()
    return results


def _verdicts(rows, name, start, folder, reference):
    """`{row: verdict}` of one implementation, by one process."""
    process, file, verdicts = start(name), folder / f"{name}.npz", {}
    for row in rows:
        if not ENTRIES[name].applies(ROWS[row]):
            continue
        try:
            for count, (i, j) in enumerate(PAIRS, start=1):
                gradient = _gradient(process, row, "float32", (i, j), file)
                expected = {key: (reference[row][i][key] + reference[row][j][key]) / 2 for key in reference[row][0]}
                verdicts[row] = _verdict(gradient, expected, count)
                if verdicts[row]["status"] == "right":
                    break
        except Failed as failure:
            verdicts[row] = _failure(str(failure))
    process.stop()
    return verdicts


def _verdict(gradient, expected, pairs):
    found = errors(gradient, expected)
    return {"status": "right" if found["error"] < TOLERANCE else "wrong", **found, "pairs": pairs}


def _failure(message):
    """Of a traceback that is part of a message, its last line says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    missing = "ModuleNotFoundError" in message or "PackageNotFoundError" in message
    reason = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return {"status": "not installed" if missing else "not possible", "reason": reason}
