# Two commands from a bare machine with Python >= 3.10 and pip (a C++ compiler makes it faster):
#   make search ARGS="..."   environment, build, then the architecture search on the embedded data
#   make test   ARGS="..."   environment, build, lint, types, tests
# TAS_FAST_BUILD=auto|off|cpu|cuda says which libraries to build (see docs/install.md).

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TAS_FAST_BUILD ?= auto
MAX_JOBS ?= 2
export TAS_FAST_BUILD MAX_JOBS

BIN := $(abspath $(VENV))/bin
# torch looks for ninja, which pip installs beside python, on PATH.
export PATH := $(BIN):$(PATH)
DEPS := $(VENV)/.deps
BUILT := $(VENV)/.built-$(TAS_FAST_BUILD)
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.h csrc/*/*)

.PHONY: setup search test lint bench clean distclean
.DELETE_ON_ERROR:

setup: $(BUILT)

search: setup
	$(BIN)/python -m tas_fast.search --amp $(ARGS)

# Fresh memory is filled with a huge number (glibc), so that results made of unwritten memory cannot pass for right ones.
test: lint
	OMP_NUM_THREADS=1 MALLOC_PERTURB_=128 $(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/local.json $(ARGS)

$(DEPS): constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; v >= (3, 10) or sys.exit(f"tas_fast needs Python 3.10 or later, $(PYTHON) is {v}")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt setuptools ninja torch
	@touch $@

# The old libraries go first: what is there afterwards is what this build made, and running programs keep theirs.
$(BUILT): $(DEPS) $(SOURCES)
	rm -f $(VENV)/.built-* tas_fast/_C*.so
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@
	@$(BIN)/python -c 'from tas_fast import _backend as b; print(*(f"{k}: {v}" for k, v in b.status().items()), sep="\n")'

clean:
	rm -rf build dist *.egg-info tas_fast/_C*.so $(VENV)/.built-*

distclean: clean
	rm -rf $(VENV)
