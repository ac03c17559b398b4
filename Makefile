# Every target makes its own virtual environment when there is none (PYTHON chooses the interpreter).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# As variables, so that the tools that build cryptofeed from source are pinned too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Images for containers often set it. Then each of the thousand processes that tests start compiles all it imports.
export PYTHONDONTWRITEBYTECODE :=

# Most tests wait most of their time: eight at once on two cores, and two for each further core. Each has its share
# of the long ones (tests/dealing.py). Whoever is done takes over from another.
SIDE_BY_SIDE ?= $(shell expr 4 + 2 '*' "$$(nproc)")
PYTEST := $(BIN)/python -m pytest --numprocesses=$(SIDE_BY_SIDE) --dist=worksteal

# The packages of Debian and Ubuntu that are needed: printed when an installation fails, below pip's output.
NEEDED := on Debian and Ubuntu it takes: apt install make python3 python3-venv python3-dev gcc

.DEFAULT_GOAL := help
.PHONY: help demo test test-pythons test-freqtrade test-influx check bench proofs proofs-coverage dist clean

help:
	@echo "make demo   the whole line at work: simulated Binance, collector, journal, reader"
	@echo "make test   the tests"
	@echo "make check  format, lint, types and tests: what has to hold before a commit"
	@echo "make bench  measurements beside named peers, as tables"
	@echo "make proofs faults, upgrades, cold starts, contracts that change, kills, outages, refusals, bots, benchmarks and soaks, written to PROOFS.md (5 hours)"
	@echo "make proofs-coverage  100,000 random histories of what is promised and missing, in two processes"
	@echo "make test-pythons  the tests on every other Python that is there (3.12, 3.13), each with its cryptofeed"
	@echo "make test-freqtrade  a real Freqtrade on the store and behind the aggregator: 80 minutes (WHAT=wheel, ensemble, live, …)"
	@echo "make test-influx URL=http://… [TOKEN=…] [ORG=…]  tests/influxdb against that server, in buckets of their own"
	@echo "make dist   a wheel in dist/: what feeders pin (pip install of it is the reader alone)"
	@echo "make clean  remove the virtual environment and caches"

# Installed once; again when the pins or the project's own requirements change.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is not Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	    || { rm -rf $(VENV); echo "no virtual environment: $(NEEDED)" >&2; exit 1; }
	@echo "installing into $(VENV), a minute or two (on Python 3.11 and 3.12 cryptofeed is compiled)"
	@$(BIN)/python -m pip install --quiet --use-pep517 -e '.[collector]' \
	    || { echo "not installed, see above: $(NEEDED)" >&2; exit 1; }
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@$(BIN)/python -m pip install --quiet --use-pep517 -e '.[dev]'
	@touch $@

demo: $(VENV)/run.stamp
	@$(BIN)/marketfeed demo

test: $(VENV)/dev.stamp
	@$(PYTEST)

check: $(VENV)/dev.stamp
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(PYTEST)

bench: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.bench

test-freqtrade: $(VENV)/dev.stamp
	@$(BIN)/python tests/freqtrade/prove.py $(WHAT)

# TOKEN and ORG are of a 2.x; from the environment, too, where they are in no list of processes.
test-influx: $(VENV)/dev.stamp
	@test -n "$(URL)" || { echo "make test-influx URL=http://influxdb.example:8086 TOKEN=… [ORG=…]" >&2; exit 1; }
	@MARKETFEED_TEST_INFLUX_URL="$(URL)" MARKETFEED_TEST_INFLUX_TOKEN="$(TOKEN)" MARKETFEED_TEST_INFLUX_ORG="$(ORG)" \
	    $(PYTEST) -r fE tests/influxdb

proofs: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.proofs

proofs-coverage: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.proofs.coverage

dist: $(VENV)/run.stamp
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

test-pythons:
	@set -e; for name in python3.12 python3.13; do \
	    if $$name -c '' 2>/dev/null; then $(MAKE) test PYTHON=$$name VENV=.venv-$$name; \
	    else echo "$$name: not there"; fi; \
	done

clean:
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
