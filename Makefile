# Every target creates and fills the virtual environment it needs; a second run reuses it.
#
#   PYTHON=python3.12 make demo      another interpreter (3.11 or newer)
#   make test PYTEST_ARGS="-k pdp"   only some tests
#   make demo PIP_ARGS="..."         extra arguments for pip, such as an index with CPU builds of PyTorch

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
INPUTS := pyproject.toml constraints.txt requirements-textattack.txt

# Tests and the demo need no network, and one thread per worker is faster than two workers fighting for cores.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help demo test slow explore browser lint format docs picture bench clean

help:  ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "       Name another interpreter: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-core: $(INPUTS) | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-all: $(INPUTS) | $(BIN)/python
	$(PIP_INSTALL) -e '.[all]'
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) --no-deps -r requirements-textattack.txt
	@touch $@ $(VENV)/.installed-core

demo: $(VENV)/.installed-core  ## three characters answer the same questions
	$(OFFLINE) $(BIN)/dialogkit demo

test: $(VENV)/.installed-all  ## the test suite, without the slow tests
	$(PYTEST) $(PYTEST_ARGS)

slow: $(VENV)/.installed-all browser  ## the tests marked slow
	$(PYTEST) -m slow $(PYTEST_ARGS)

explore: $(VENV)/.installed-all  ## the property tests with fresh examples
	HYPOTHESIS_PROFILE=explore $(PYTEST) -m "hypothesis and not slow" $(PYTEST_ARGS)

# Without it the tests of the chat page in a browser are skipped.
browser:  ## install Chromium where apt-get can
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
	} || echo "no Chromium: install it to test the chat page in a browser"

lint: $(VENV)/.installed-all  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-all  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-all  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

picture: $(VENV)/.installed-core  ## draw docs/img/demo.svg from the real output of the demo
	$(OFFLINE) $(BIN)/python scripts/demo_picture.py

bench: $(VENV)/.installed-all  ## run every benchmark, results in runs/bench/
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(OFFLINE) $(BIN)/python $$script; done

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
