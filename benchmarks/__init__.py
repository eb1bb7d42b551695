"""Speed and memory of keras_maml beside its peers; see README.md. Run by `python -m benchmarks.run`."""
