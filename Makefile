# Two commands do all set-up on a fresh machine: `make serve` and `make test`.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= demo
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 2
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: serve test test-long coverage lint format clean

## serve MODEL (the embedded demo model) on PORT, and print a curl command to try it with
serve: $(VENV)/.serve
	$(BIN)/ostinato serve $(MODEL) --host $(HOST) --port $(PORT)

## run the tests in WORKERS processes, each with a thread and about 4 GB of memory
test: $(VENV)/.test
	$(PYTEST) -m "not long"

## run the tests that take long: every model in Triton's interpreter, kernels compiled for GPUs, faults under load
test-long: $(VENV)/.test
	$(PYTEST) -m long

## run the tests and report which lines and branches they reach, which takes two fifths longer
coverage: $(VENV)/.test
	$(PYTEST) -m "not long" --cov --cov-report=term:skip-covered

## check format, style, import direction and types
lint: $(VENV)/.dev build/types/ostinato
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

## put the code into shape
format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -e ".[test]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -e ".[dev]"
	touch $@

# The top-level folders are the packages; type checkers see them under their import name through this link.
build/types/ostinato:
	mkdir -p build/types
	ln -s ../.. $@
