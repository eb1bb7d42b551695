# `make demo` and `make test` work from a bare clone: the first of them creates .venv.
#   make test PYTHON=python3.12          another interpreter for .venv
#   make test PYTEST_ARGS="-x -k sgd"    other arguments for pytest

PYTHON ?= python3
PYTEST_ARGS ?= -n 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint wheel clean

demo: $(STAMP)
	$(BIN)/python examples/quickstart.py

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

# Leaves .venv, which takes minutes to make.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
