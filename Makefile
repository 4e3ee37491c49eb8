# Every target works from a fresh clone. `make help` lists them.
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
TORCH   := torch==2.13.0
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
# `===` is met by the exact version only: the CUDA build, never one marked +cpu that lies nearer.
ifeq ($(HAS_GPU),yes)
TORCH   := torch===2.13.0
endif
PIP     := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-compile --constraint constraints.txt
# Afterwards by all processors, and without the libraries' own tests; pip takes one processor for everything.
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib >/dev/null || true
PYTEST  := $(BIN)/python -m pytest
JOBS    ?= 2

# Some machines forbid Python to keep what it compiled: each of many processes would compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv dev demo app test check lint types unit fmt golden docs docs-check screenshots smoke bench browser postgres programs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(VENV)/.installed  ## the virtual environment with what the studio needs to run

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON): is not Python 3.11 to 3.13. Name one: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(INSTALL) '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@$(COMPILE)
	@touch $@

dev: $(VENV)/.dev

$(VENV)/.dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	@$(COMPILE)
	@touch $@

demo: venv  ## pictures become an adapter that visibly works; ends with the paths
	$(BIN)/studio --home demo-output/workspace demo --out demo-output

app: venv  ## the studio in a browser
	$(BIN)/studio app

test: dev browser postgres programs  ## lint, types, generated pages and every test
	$(MAKE) lint docs-check
	$(MAKE) --jobs=2 types unit  # pyright takes what the tests leave of two cores

check: test

lint: dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev  ## pyright
	$(BIN)/pyright

unit: dev browser postgres programs
	# Two workers on two cores: a second thread in each only waits for the other's.
	# Files are dealt out in the order of tests/conftest.py, the longest first.
	OMP_NUM_THREADS=1 $(PYTEST) tests --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 30

fmt: dev  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: dev  ## record the golden losses anew (look at the diff)
	$(PYTEST) tests/golden --record-golden

docs: dev  ## generate the command line and recipe pages
	$(BIN)/python -m studio.docs

docs-check: dev
	$(BIN)/python -m studio.docs --check

screenshots: dev browser  ## every page, empty and filled, light and dark, wide and narrow
	$(BIN)/python -m tests.app.screenshots docs/screenshots

smoke: ## a fresh environment with runtime dependencies only: the commands start, the pocket base draws
	rm -rf build/smoke && $(MAKE) venv VENV=build/smoke
	build/smoke/bin/studio --version
	build/smoke/bin/studio --home build/smoke/home --json bases list
	build/smoke/bin/studio --home build/smoke/home sample --prompt "a red circle on a white background" \
	  --steps 4 --out build/smoke/pictures

bench: dev  ## the figures of docs/benchmarks.md, measured here (an hour); build/benchmarks.json
	$(BIN)/python -m benchmarks.everything --out build/benchmarks.json

# A browser for the tests: what is there, else Debian's, else Playwright's own.
browser: dev
	@$(BIN)/python -m tests.support.browser

# A database server for the tests: what is there, else Debian's where it may be installed.
postgres: dev
	@$(BIN)/python -m tests.support.postgres

# Small programs that tests call.
programs: dev
	@$(BIN)/python -m tests.support.debian strace openssl

clean:  ## remove the virtual environment and everything generated
	rm -rf $(VENV) build dist demo-output .pytest_cache .ruff_cache .hypothesis *.egg-info
