# `make help` lists what there is. Nothing but Python 3.11 or newer has to be installed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: help venv demo test studies questions lint bench

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

export RAY_USAGE_STATS_ENABLED := 0

help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18
	@echo '  Variables: PYTHON=python3.12 chooses the interpreter of `make venv`; ARGS="..." goes to demo, test, studies, bench.'

venv: .venv/.stamp  ## install everything into .venv, at the versions of constraints.txt

# Made again when what it is made from changes; pip then installs the difference.
.venv/.stamp: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo 'make: $(PYTHON) is not here; install Python 3.11 or newer, or name one: make venv PYTHON=python3.12' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Throng needs Python 3.11 or newer, $(PYTHON) is $$("$(PYTHON)" -V 2>&1); name another: make venv PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'make: $(PYTHON) lacks its venv module; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	@echo 'installing into .venv: minutes and about 3 GB the first time'
	$(PIP) install --quiet --constraint constraints.txt setuptools
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@mkdir -p .venv/typing
	@ln -sfn ../.. .venv/typing/throng  # so that mypy finds the package `throng`: it is this directory
	@touch $@

demo: venv  ## learn the built-in town, two to five minutes; the last line names the report
	$(BIN)/throng run $(ARGS)

test: venv  ## the tests, two files at a time
	$(BIN)/pytest --numprocesses=2 --dist=loadfile $(ARGS)

studies: venv  ## the tables of docs/results/: whole searches, eight hours or more
	$(BIN)/python bench/study.py town --truths 0 1 2 --seeds 0 1 $(ARGS)
	$(BIN)/python bench/study.py town --truths 3 4 --seeds 0 1 --name town-held-out $(ARGS)
	$(BIN)/python bench/study.py town --truths 0 1 2 --seeds 0 1 --set latent.kind=table --set search.screen=1 --set search.guidance=false \
	  --set diffusion.width=64 --name town-table $(ARGS)
	$(BIN)/python bench/study.py examples/bologna.yaml --seeds 0 1 --set search.budget=64 $(ARGS)
	$(BIN)/python bench/study.py examples/pasubio.yaml --seeds 0 1 --set search.budget=64 $(ARGS)
	$(BIN)/python bench/study.py examples/acosta.yaml --seeds 0 --set search.budget=64 $(ARGS)
	$(BIN)/python bench/study.py examples/cologne8.yaml --truths 0 1 2 --seeds 0 1 --set search.budget=64 $(ARGS)
	$(BIN)/python bench/study.py examples/hangzhou.yaml --truths 0 1 --seeds 0 $(ARGS)
	$(BIN)/python bench/world_study.py --sumo town examples/pasubio.yaml --sumo-held-out examples/cologne8.yaml \
	  --recorded ../shared/data/scenes --epochs 15
	$(BIN)/python bench/crossing.py
	$(BIN)/python bench/scenes.py

LOOP := B1C1,C1D1,D1D2,D2D3,D3C3,C3B3,B3B2,B2B1
LEFTS := A3B3 B3C3 C3D3 E3D3 D3C3 C3B3 B3A3 B1B2 B2B3 B3B2 B2B1
SIX := --truths 0,1,2 --seeds 0,1 --out runs/town-studies
WHATIF := --truths 0,1,2 --seeds 0,1 --set search.population=64 --set search.budget=192 --out runs/whatif
TASTE := --set target.truth=taste --set latent.connection_taste=400 --set latent.groups=14 --set search.budget=640 \
  --set search.patience=100

questions: venv  ## the paper's three questions, ablations, a latent of 397 numbers: a day; goes on where it stopped
	$(BIN)/throng validate --one-way $(LOOP) $(WHATIF) --name rq2-loop $(ARGS)
	$(BIN)/throng validate $(LEFTS:%=--ban-left-onto %) $(WHATIF) --name rq2-left $(ARGS)
	$(BIN)/throng compare --methods masdiff,cgan,ldm-imit,ldm-cfg,ldm-pcfg,random,cma,table,duaiterate,routesampler \
	  $(SIX) --name rq1-queue $(ARGS)
	$(BIN)/throng compare --methods masdiff,cgan,ldm-imit,ldm-cfg,ldm-pcfg,random,cma $(SIX)-lcc --set target.kind=lcc \
	  --name rq1-lcc $(ARGS)
	$(BIN)/throng compare --methods masdiff,no-mutation,no-elites,no-learning,no-screening,no-guidance,one-step,eq8-weights,line6-handover,line5,micro-only,astar-q,soft-vi,token \
	  $(SIX) --name ablations $(ARGS)
	$(BIN)/throng compare --methods masdiff,cma,random,no-elites,no-mutation --truths 0 --seeds 0,1,2,3,4 $(TASTE) \
	  --out runs/taste --name taste $(ARGS)
	$(BIN)/python bench/growth.py $(ARGS)
	for table in whatif/rq2-loop whatif/rq2-left town-studies/rq1-queue town-studies-lcc/rq1-lcc town-studies/ablations taste/taste; do \
	  cp runs/$$table.{md,json,png} docs/results/; done

lint: venv  ## ruff (rules and formatting) and mypy
	@failed=0; \
	  $(BIN)/ruff check . || failed=1; \
	  $(BIN)/ruff format --check . || failed=1; \
	  $(BIN)/mypy | sed 's|^\.venv/typing/throng/||' || failed=1; \
	  exit $$failed

bench: venv  ## the benchmarks, against their bars
	$(BIN)/python bench/run.py $(ARGS)
