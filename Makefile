# Every target sets up what it needs: a virtual environment with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests in one process run side by side, with a thread each.
IN_PROCESS := tests/unit tests/numerics
# Those that start processes wait for them a part of the time, so one file more than there are cores fills them. Tests of
# a file share a cluster and stay together; files in this order, so that what takes longest is not begun last.
WITH_PROCESSES := tests/e2e tests/ray tests/multiprocess
# They are more threads than cores, and one that spins while it waits keeps another from its work (three commands at once
# took 23 to 61 s with spinning and 16 s without).
SIDE_BY_SIDE = -n $(shell $(BIN)/python -c 'import os; print(1 + min(4, os.cpu_count()))') --no-loadscope-reorder
# Ray workers import torch once per process; without bytecode each pays several seconds for it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-fast lint format check bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rememe needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@test -x $(BIN)/uv || $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## train four experts in parallel on real images, score them, show where to look
	$(BIN)/rememe train demo-meme

docs: setup  ## build the documentation into site/ (a test builds it too); read it with: .venv/bin/mkdocs serve
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

test: test-fast  ## lint, types and every test that runs without a GPU
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'not gpu' $(SIDE_BY_SIDE) --dist loadfile $(WITH_PROCESSES) $(PYTEST_ARGS)

test-fast: check  ## lint, types and the tests that start no process: a few minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not gpu' -n auto --maxprocesses 4 --dist loadfile $(IN_PROCESS) $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint: check  ## ruff and mypy only

format: setup  ## reformat and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure every row of benchmarks/README.md, half an hour; PEERS=DIR has checkouts of the public code
	$(BIN)/python -m benchmarks $(if $(PEERS),--peers $(PEERS))

clean:  ## remove the virtual environment and caches (runs/ is kept)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
