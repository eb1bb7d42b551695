"""A process of its own for one implementation: `python -m benchmarks.worker jax` and requests on its standard input.

Each request is a line of JSON, each answer too: {"command": "check", ...} and so on, a method of `Worker` each. A
process of its own makes memory and the time to the first step that implementation's alone.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time

import numpy as np

from benchmarks import check
from benchmarks.implementations import ENTRIES
from benchmarks.rows import ROWS


def memory_mb():
    """`(peak, now)` of this process's resident memory in MB. Not `ru_maxrss`: a child inherits its parent's."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS"))


def cast(arrays, dtype):
    return {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in arrays.items()}


class Worker:
    def __init__(self, name):
        self.entry = ENTRIES[name]
        self.kind = self.entry.load()
        self.idle_since = None
        self.checked = None  # name of a row and the implementation that was built to check it

    def hello(self):
        packages = ("numpy", *self.entry.packages)
        versions = {package: importlib.metadata.version(package) for package in packages}
        return {"versions": {"python": platform.python_version(), **versions}}

    def check(self, row, dtype, tasks, file):
        """Writes the meta-gradient of some tasks at the initial weights to an .npz file."""
        row = ROWS[row]
        episodes = {name: value[tasks] for name, value in cast(row.episodes(), dtype).items()}
        episodes |= {name: episodes[name][:, : check.QUERIES] for name in ("query_x", "query_y")}
        if self.checked is None or self.checked[0] != row.name:
            row = dataclasses.replace(row, tasks=len(tasks))
            self.checked = row.name, self.kind(row, cast(row.weights(), dtype), episodes)
        np.savez(file, **self.checked[1].meta_gradient(episodes))
        return {}

    def load(self, row):
        """Gets ready to race: settings and data, nothing of the framework."""
        self.row = ROWS[row]
        self.kind.prepare(self.row)
        self.arguments = self.row, cast(self.row.weights(), "float32"), cast(self.row.episodes(), "float32")
        self.megabytes_before = memory_mb()[1]
        return {"megabytes": self.megabytes_before}

    def first_step(self):
        """Builds, traces, compiles and makes the first meta-step, or as many as the row executes at once."""
        start = time.perf_counter()
        self.implementation = self.kind(*self.arguments)
        self.implementation.run(self.implementation.steps_at_once)
        return {"seconds": time.perf_counter() - start}

    def burst(self, steps):
        """Makes at least `steps` meta-steps; also the processor time that was spent since the last burst, waiting."""
        waiting = 0.0 if self.idle_since is None else time.process_time() - self.idle_since
        multiple = self.implementation.steps_at_once
        steps = -(-steps // multiple) * multiple
        start = time.perf_counter()
        self.implementation.run(steps)
        seconds = time.perf_counter() - start
        self.idle_since = time.process_time()
        return {"milliseconds": 1000 * seconds / steps, "steps": steps, "idle_seconds": waiting}

    def memory(self):
        peak = memory_mb()[0]
        return {"peak_mb": peak, "growth_mb": peak - self.megabytes_before}


def _worker(name):
    if name != "matmul":
        return Worker(name)
    from benchmarks.matmul import MatmulWorker

    return MatmulWorker()


def main():
    # What libraries print goes to standard error; answers have the standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or _worker(sys.argv[1])
            answer = getattr(worker, request.pop("command"))(**request)
        except Exception as error:  # whatever a peer raises belongs into its row of the table
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
