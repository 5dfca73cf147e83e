# `make demo` and `make test` do all set-up by themselves; `make help` lists the rest.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.dev-installed
RUN := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-gpu lint format model chaos bench lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(RUN)  ## Make .venv with cfab in it, from the hash-pinned lock file

$(RUN): requirements.lock setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with its venv module is needed (Debian: python3-venv);" \
		"name one with: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing what runs (about half a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(DEV): $(RUN) requirements-dev.lock
	@echo "installing what tests and checks need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(RUN)  ## Run the main job on a stack of its own and show what it promises
	@$(BIN)/cfab demo

up: $(RUN)  ## Run the one-machine stack in the foreground
	@$(BIN)/cfab up

test: $(DEV)  ## Run all tests on embedded servers
	@scripts/install-test-tools
	@echo "chaos in short; then all other tests"
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/chaos
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/chaos $(PYTEST_ARGS)

test-gpu: $(DEV)  ## Run what needs an NVIDIA GPU, without a network; skips where there is none
	@$(BIN)/python -m pytest -q -rs tests/gpu $(PYTEST_ARGS)

lint: $(DEV)  ## Check style, types and the direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(DEV)  ## Format the code
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

model:  ## Check the formal model of a job's life, and that each check can fail
	@docs/model/check

chaos: $(DEV)  ## Hit every part at random while 300 jobs run, and check that nothing is lost or doubled
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

bench: $(DEV)  ## Measure throughput, latency, claim cost and memory; writes a table, JSON and a plot
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

lock: $(DEV)  ## Make the lock files anew
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-tools
	@$(BIN)/python -m piptools compile --quiet --allow-unsafe --generate-hashes --strip-extras --no-emit-index-url \
		--no-emit-find-links --no-emit-trusted-host --no-emit-options -o requirements.lock requirements.in
	@$(BIN)/python -m piptools compile --quiet --allow-unsafe --generate-hashes --strip-extras --no-emit-index-url \
		--no-emit-find-links --no-emit-trusted-host --no-emit-options -o requirements-dev.lock requirements-dev.in

clean:  ## Remove what the targets above made
	@rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
