"""The race of one row: a process for each implementation, bursts of meta-steps in turn, the matmul peak between."""

import statistics

from benchmarks.processes import Failed

# A step slower than this is timed in every other round only.
SLOW_SECONDS = 1.5


def race(row, names, start, rounds, burst_seconds):
    """Times the implementations of a row, interleaved: what else the machine does falls on all of them.

    Args:
        row: its name.
        names: of the implementations whose meta-gradient is right.
        start: function from a name to a `processes.Process`.
        rounds: number of bursts of each.
        burst_seconds: about how long a burst takes; it has one meta-step at least.

    Returns:
        `(results, gflops)`: `{name: {"milliseconds": [one number a burst], "first_step_s", ...}}`, or `{"reason"}` for
        one that fails; and the matmul peaks, one a round.
    """
    matmul = start("matmul")
    started = {name: start(name) for name in names}
    results = {name: {"milliseconds": [], "idle_seconds": 0.0} for name in names}
    try:
        _load(started, results, row)
        steps = {name: _first_steps(started[name], results[name], burst_seconds) for name in names}
        gflops = []
        for index in range(rounds):
            for name in names:
                slow = results[name].get("step_s", 0) > SLOW_SECONDS
                if "reason" not in results[name] and not (slow and index % 2):
                    _burst(started[name], results[name], steps[name])
            gflops.append(matmul.ask("gflops")["gflops"])
    finally:
        for process in (matmul, *started.values()):
            process.stop()
    return results, gflops


def _load(started, results, row):
    """All at the same time: imports are not timed."""
    for process in started.values():
        process.send("hello")
        process.send("load", row=row)
    for name, process in started.items():
        try:
            results[name] |= process.receive()
            results[name] |= process.receive()
        except Failed as failure:
            results[name]["reason"] = str(failure)


def _first_steps(process, result, burst_seconds):
    """The first step, a second one to warm up, memory; then how many steps make a burst."""
    if "reason" in result:
        return 0
    try:
        result["first_step_s"] = process.ask("first_step")["seconds"]
        result["step_s"] = process.ask("burst", steps=1)["milliseconds"] / 1000
        if result["step_s"] < SLOW_SECONDS:  # the second step may still warm up
            result["step_s"] = process.ask("burst", steps=1)["milliseconds"] / 1000
        result |= process.ask("memory")
    except Failed as failure:
        result["reason"] = str(failure)
        return 0
    return max(1, round(burst_seconds / result["step_s"]))


def _burst(process, result, steps):
    try:
        answer = process.ask("burst", steps=steps)
    except Failed as failure:
        result["reason"] = str(failure)
        return
    result["milliseconds"].append(answer["milliseconds"])
    result["idle_seconds"] += answer["idle_seconds"]


def summary(milliseconds):
    return {"median": statistics.median(milliseconds), "min": min(milliseconds), "max": max(milliseconds)}
