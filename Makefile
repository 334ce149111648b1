# `make demo` and `make test` need nothing but Python 3.11 or newer. `make fuzz` takes about an hour on two
# cores, `make stress` (tests of the end of runs on a busy machine, ten times each) as long.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo docs test test-fast test-cuda fuzz stress check lint format clean

demo: .venv/installed
	$(BIN)/spanbox demo

test: .venv/installed lint
	$(BIN)/python -m pytest

test-fast: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

test-cuda: .venv/installed
	$(BIN)/python -m pytest -n 0 -m cuda

fuzz: .venv/installed
	$(BIN)/python tests/fuzz/fuzz_run.py --count 10000

stress: .venv/installed
	SPANBOX_REPEAT=10 $(BIN)/python -m pytest --timeout=900 tests/test_endings.py

docs: .venv/installed
	$(BIN)/python -m mkdocs build --strict

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks
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
