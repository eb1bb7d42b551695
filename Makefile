# `make demo` and `make test` work from a bare clone: the first of them creates .venv.
#   make test PYTHON=python3.12          another interpreter for .venv
#   make test PYTEST_ARGS="-x -k sgd"    other arguments for pytest
#   make benchmark BENCHMARK_ARGS="--rows sinusoid_k1"    `--list` names rows
#   make benchmark-accuracy ACCURACY_ARGS="--data-dir ~/tensorflow_datasets"    `--list` names rows

PYTHON ?= python3
# A file is run by one process, as what it prepares for all its tests is made once. With three processes it all took 12 %
# more processor time.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
BENCHMARK_ARGS ?=
ACCURACY_ARGS ?=
# Where PyTorch for CPUs is: the package of the general index brings gigabytes of CUDA along. Empty: only that index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
BENCHMARK_STAMP := $(VENV)/installed-benchmarks
# pip would do it on one core. A file that is no Python of this version may lie in a package, and matters not.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib || true

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint wheel benchmark benchmark-episodes benchmark-evaluation benchmark-memory \
	benchmark-accuracy benchmark-sinusoid clean

demo: $(STAMP)
	$(BIN)/python examples/quickstart.py

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

# A quarter of an hour; wants the machine for itself.
benchmark: $(BENCHMARK_STAMP)
	$(BIN)/python -m benchmarks.run $(BENCHMARK_ARGS)

# Three minutes; how fast episodes come. Needs no peers.
benchmark-episodes: $(STAMP)
	$(BIN)/python -m benchmarks.episodes $(BENCHMARK_ARGS)

# Two minutes; what a report costs beside an evaluation. Needs no peers.
benchmark-evaluation: $(STAMP)
	$(BIN)/python -m benchmarks.evaluation $(BENCHMARK_ARGS)

# Ten minutes; memory of a meta-step, predicted and measured. Needs no peers.
benchmark-memory: $(STAMP)
	$(BIN)/python -m benchmarks.memory_prediction $(BENCHMARK_ARGS)

# About seven hours, and may be stopped: what is finished is kept. Needs Omniglot; `--table` writes benchmarks/accuracy.md.
benchmark-accuracy: $(STAMP)
	$(BIN)/python -m benchmarks.accuracy $(ACCURACY_ARGS)

# An hour, and may be stopped; `--table` writes benchmarks/sinusoid.md.
benchmark-sinusoid: $(STAMP)
	$(BIN)/python -m benchmarks.sinusoid_table $(BENCHMARK_ARGS)

# Leaves .venv, which takes minutes to make.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[test]"
	@$(COMPILE)
	touch $@

# The peers come on top of what the tests need, and only here.
$(BENCHMARK_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[benchmarks]" $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@$(COMPILE)
	touch $@
