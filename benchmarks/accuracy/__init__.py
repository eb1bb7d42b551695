"""How accurate algorithms are after the same seconds of training. `python -m benchmarks.accuracy --help`."""
