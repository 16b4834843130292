# `make help` lists the targets. `make train` installs what training needs into .venv, the targets of developers the rest,
# each once; a changed pyproject.toml installs again.

PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
# make train ARGS="model=vit_s16 trainer.max_epochs=5"
ARGS   ?=
# make install TORCH="torch torchvision --index-url URL": a CPU-only build, or one for a chosen CUDA
TORCH  ?=

.DEFAULT_GOAL := help
.PHONY: help install train test long faults mutations scale results benchmark check format

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make the environment for training in .venv (`make train` does it too)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("vitlab needs Python 3.11 or newer, and $(PYTHON) is %s: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Debian and Ubuntu keep venv in a package of its own: apt install python3-venv" >&2; exit 1; }

$(STAMP) $(DEV): pyproject.toml | $(VENV)/bin/python
	$(if $(TORCH),$(VENV)/bin/python -m pip install $(TORCH))
	$(VENV)/bin/python -m pip install --quiet --editable '.$(if $(filter $(DEV),$@),[dev])'
	@touch $(STAMP) $@

train: $(STAMP) ## train on handwritten digits (experiment=digits, or what ARGS names): about a minute
	$(VENV)/bin/python src/train.py $(or $(ARGS),experiment=digits)

test: $(DEV) ## run the tests: under ten minutes on two cores
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

long: $(DEV) ## run the tests that take longest: networks of full size, clusters, many processes
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m long $(ARGS)

faults: $(DEV) ## do to runs what happens to runs, and count what was lost: 40 minutes at most
	$(VENV)/bin/python tests/faults $(ARGS)

mutations: $(DEV) ## change the source in 300 places, and count the changes that no test notices: an hour
	$(VENV)/bin/python tests/mutations.py $(ARGS)

results: $(DEV) ## keep the results of runs (ARGS="runs/digits/*") and write the tables of experiments/README.md
	$(VENV)/bin/python tests/results.py $(ARGS)

scale: $(DEV) ## measure how the cost around training grows: with files, jobs, runs and rows
	$(VENV)/bin/python tests/scale $(ARGS)

benchmark: $(DEV) ## measure vitlab against timm, torchvision, transformers and vit-pytorch
	$(VENV)/bin/python tests/benchmark $(ARGS)

check: $(DEV) ## format, lint and types: nothing is changed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports

format: $(DEV) ## format the code and mend what lint can mend
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
