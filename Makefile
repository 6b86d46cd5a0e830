# Everything a person needs: `make quickstart`, then `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# tests read the chat templates inside these; what they would bring along is not needed for that
TEMPLATES_OF := trl==1.16.0 mistral-common==1.13.1

.PHONY: setup quickstart test test-fast check bench bench-setup clean

setup: $(STAMP)

# torch first and by its exact version: any other request may pull gigabytes of CUDA
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(TEMPLATES_OF)
	touch $@

quickstart: setup
	$(BIN)/sapwood quickstart

# the slow runs one at a time, for each of them uses every core
test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"
	$(BIN)/python -m pytest -m slow --durations=5

test-fast: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench-setup: setup
	$(BIN)/python -m bench.setting

bench: setup
	$(BIN)/sapwood bench data --against trl
	$(BIN)/sapwood bench sharing
	$(BIN)/sapwood bench eval --against lm-eval
	$(BIN)/sapwood bench fused-lora

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
