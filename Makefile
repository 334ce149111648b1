# `make demo` and `make test` need nothing but Python 3.11 or newer. `make fuzz` takes about an hour on two cores.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast fuzz check lint format clean

demo: .venv/installed
	$(BIN)/spanbox demo

test: .venv/installed lint
	$(BIN)/python -m pytest

test-fast: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

fuzz: .venv/installed
	$(BIN)/python tests/fuzz/fuzz_run.py --count 10000

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs dist

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
