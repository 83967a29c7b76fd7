# Every target sets up what it needs: a virtual environment in .venv with the locked dependencies.
# From python3 (3.11 to 3.13), its venv module and make alone. `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types bench pocket-model test-slow test-gpu clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | \
	  while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

setup: $(READY) ## create .venv and install the locked dependencies (done by every other target)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"python3 is {v[0]}.{v[1]}; allowed are 3.11 to 3.13 (choose one: make PYTHON=python3.12 ...)")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing requirements.lock into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(READY) ## zero-shot, SGD, MeZO, LOZO and AGZO on the three pocket tasks: a table and a plot
	@$(BIN)/python -m experiments.demo $(ARGS)
	@$(BIN)/python -m analysis.table runs/demo --kind demo --out runs/demo/table.md
	@$(BIN)/python -m analysis.curves runs/demo --out runs/demo/loss

test: lint types ## lint, types and the fast tests
	@$(BIN)/python -m pytest -q $(ARGS)

lint: $(READY) ## ruff and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: $(READY) ## basedpyright
	@$(BIN)/basedpyright

test-slow: $(READY) ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m "slow and not gpu" $(ARGS)

test-gpu: $(READY) ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -q -m gpu $(ARGS)

bench: $(READY) ## cost of a step in units of two plain forwards (ARGS="--device cuda" on a GPU)
	@$(BIN)/python -m experiments.bench $(ARGS)

pocket-model: $(READY) ## rebuild the committed pocket model from its recipe (at most 15 minutes)
	@$(BIN)/python -m experiments.pocket.pretrain $(ARGS)

clean: ## remove .venv and caches; results stay
	rm -rf $(VENV) .ruff_cache .import_linter_cache .hypothesis *.egg-info
