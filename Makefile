PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart smollm2 check test

setup: $(VENV)/.installed

# bfcl-eval is for tests/parity: its checker and data are plain files, but its dependencies would change this environment.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps bfcl-eval
	touch $@

quickstart: setup
	$(BIN)/pbsd train recipes/quickstart.yaml

smollm2: setup
	$(BIN)/python scripts/prepare_smollm2.py
	$(BIN)/pbsd train recipes/smollm2_bfcl.yaml --max_steps 3

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	$(BIN)/pytest
