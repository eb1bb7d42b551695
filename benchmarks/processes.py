"""Starts workers and talks to them."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


class Failed(Exception):
    """A worker answered with an error, or died."""


class Process:
    """A worker in a process of its own.

    Args:
        name: of the implementation.
        python: interpreter to run it.
        log: file that takes what it and its libraries print.
        threads: for PyTorch and NumPy; default what they choose.
    """

    def __init__(self, name, python, log, threads=None):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        environment["PYTHONPATH"] = str(ROOT)
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def send(self, command, **arguments):
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `receive` says that it died

    def receive(self):
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def ask(self, command, **arguments):
        self.send(command, **arguments)
        return self.receive()

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
