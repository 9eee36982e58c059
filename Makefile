PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup chromium quickstart smollm2 check test test-newest test-lowest

setup: $(VENV)/.installed

# bfcl-eval is for tests/parity: its checker and data are plain files, but its dependencies would change this environment.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps bfcl-eval
	touch $@

# tests/web drive a real browser: Debian's, where it is absent and we may install it; elsewhere they are skipped.
chromium:
	@command -v chromium >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null; \
	else echo "no chromium: the web tests will be skipped (install it, or run make chromium as root on Debian)"; fi

quickstart: setup
	$(BIN)/pbsd train recipes/quickstart.yaml

smollm2: setup
	$(BIN)/python scripts/prepare_smollm2.py
	$(BIN)/pbsd train recipes/smollm2_bfcl.yaml --max_steps 3

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup chromium
	$(BIN)/pytest --numprocesses auto --dist loadfile

# The newest versions that pip resolves today, and the lowest that pyproject.toml allows, each in an environment of its own.
test-newest test-lowest: test-%:
	PYTHON=$(PYTHON) scripts/test_versions.sh $*
