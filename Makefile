# Every target makes its own virtual environment when there is none (PYTHON chooses the interpreter).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# As variables, so that the tools that build cryptofeed from source are pinned too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-pythons test-freqtrade check bench clean

help:
	@echo "make demo   the whole line at work: simulated Binance, collector, journal, reader"
	@echo "make test   the tests"
	@echo "make check  format, lint, types and tests: what has to hold before a commit"
	@echo "make bench  measurements beside named peers, as tables"
	@echo "make proofs faults, kills, outages, benchmarks and soaks, written to PROOFS.md (40 minutes)"
	@echo "make test-pythons  the tests on every other Python that is there (3.12, 3.13), each with its cryptofeed"
	@echo "make test-freqtrade  a real Freqtrade on the store: 35 minutes (WHAT=ensemble, live, outage, refresh or freqai)"
	@echo "make clean  remove the virtual environment and caches"

# Installed once; again when the pins or the project's own requirements change.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (cryptofeed 2.x is compiled on Python 3.11 and 3.12: half a minute)"
	@$(BIN)/python -m pip install --quiet -e '.[collector]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(VENV)/run.stamp
	@$(BIN)/marketfeed demo

test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest

check: $(VENV)/dev.stamp
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest

bench: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.bench

test-freqtrade: $(VENV)/dev.stamp
	@$(BIN)/python tests/freqtrade/prove.py $(WHAT)

proofs: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.proofs

test-pythons:
	@set -e; for name in python3.12 python3.13; do \
	    if $$name -c '' 2>/dev/null; then $(MAKE) test PYTHON=$$name VENV=.venv-$$name; \
	    else echo "$$name: not there"; fi; \
	done

clean:
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
