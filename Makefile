# All targets need Python 3.11 or later, git and make; they install everything else into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-train check clean

demo: $(VENV)/demo
	@$(BIN)/bespeak demo

test: $(VENV)/test
	$(BIN)/bespeak models build
	$(BIN)/python -m pytest $(PYTEST)

test-train: $(VENV)/train
	$(BIN)/bespeak models build
	$(BIN)/python -m pytest -m train $(PYTEST)

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Bespeak needs Python 3.11 or later; name one with PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[rewriter]'
	@touch $@

$(VENV)/test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@ $(VENV)/demo

$(VENV)/train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,train]'
	@touch $@ $(VENV)/demo
