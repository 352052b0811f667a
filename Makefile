# Everything from nothing: the first call makes the virtual environment, later calls do not.
#   make run ARGS="task=digits model.width=256"    make test ARGS="-k parity"    make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

python := "$(VENV)/bin/python"
stamp := $(VENV)/.installed

.PHONY: help run test report lint lint-style lint-format lint-types install clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

run: $(stamp) ## The default experiment (ARGS: other settings)
	$(python) -m bench $(ARGS)

test: $(stamp) ## The fast tests (ARGS: for pytest)
	$(python) -m pytest -n auto --maxprocesses 8 $(ARGS)

report: $(stamp) ## The page and tables from the runs on disk
	$(python) -m bench.report $(ARGS)

lint: lint-style lint-format lint-types ## Style, format and types

lint-style: $(stamp)
	$(python) -m ruff check .

lint-format: $(stamp)
	$(python) -m ruff format --check .

lint-types: $(stamp)
	$(python) -m mypy

install: $(stamp) ## Only the virtual environment

clean: ## Remove the virtual environment and the tools' caches; runs/ stays
	rm -rf "$(VENV)" build widebench.egg-info .mypy_cache .pytest_cache .ruff_cache

# The stamp comes last: an install that failed or was interrupted leaves none, and is done again.
$(stamp): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "widebench needs Python 3.11 or newer, and '$(PYTHON)' is not: name one, as in 'make $(or $(MAKECMDGOALS),install) PYTHON=python3.12'." >&2; \
	    exit 1; }
	@rm -f "$@"
	@echo "Installing into $(VENV); the first time takes some minutes ..."
	@"$(PYTHON)" -m venv "$(VENV)"
	$(python) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch "$@"
