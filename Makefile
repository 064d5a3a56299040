# Everything a stranger needs; `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Tests run four at a time, since many wait; one thread each, or they fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# What tells within two minutes whether the engine, the ledger and the routes still work.
FAST := api_tests/engine api_tests/evaluation api_tests/methods/test_fields.py api_tests/net api_tests/ledger/test_ledger.py \
	api_tests/service/test_contract.py api_tests/service/test_jobs.py api_tests/project/test_layers.py api_tests/project/test_paths.py
# Finds barriers in the dashboard's pages. Where it cannot be fetched, the tests that need it are skipped.
AXE := build/npm/node_modules/axe-core/axe.min.js

.DEFAULT_GOAL := help
.PHONY: help demo up test test-fast test-matrix exporters fuzz fuzz-images chaos lint format bench bench-gpu clean

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: .venv/.installed ## Attack a real photo through the service and show what came of it
	@$(BIN)/touchstone demo

up: .venv/.installed ## Serve on 127.0.0.1:8000 until Ctrl-C
	@$(BIN)/touchstone up

test: .venv/.tested $(AXE) ## Run all tests (those in a browser only where there is Chromium)
	$(ONE_THREAD) $(BIN)/python -m pytest -n 4 --dist worksteal

test-fast: .venv/.tested ## Run what takes under two minutes: for use while working
	$(ONE_THREAD) $(BIN)/python -m pytest -n 4 --dist worksteal $(FAST)

test-matrix: .venv/.tested ## Run what needs other servers or environments, where they are installed, and record the results
	$(BIN)/python -m tools.test_matrix

exporters: .venv/.tested ## Have real exporters write networks, ONLY those that match, and check each (an hour, 5 GB)
	$(ONE_THREAD) nice $(BIN)/python -m tools.exporters $(ONLY)

fuzz: .venv/.tested ## Ask API and ledger what they do not expect, for MINUTES (10) and a while, differently each time
	$(ONE_THREAD) $(BIN)/python -m api_tests.support.fuzz_api $(or $(MINUTES),10)
	TOUCHSTONE_FUZZ=1 $(BIN)/python -m pytest --timeout 0 api_tests/ledger/test_state_machine.py

fuzz-images: .venv/.tested ## Feed damaged images to the decoders for MINUTES (10), differently each time
	$(BIN)/python -m api_tests.support.fuzz_images $(or $(MINUTES),10)

lint: .venv/.tested ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.tested ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.tested ## Measure Touchstone beside its peers (about 20 minutes)
	$(BIN)/python -m benchmarks

bench-gpu: .venv/.tested ## Measure and check a GPU in at most eight minutes; writes build/gpu.json
	$(BIN)/python -m benchmarks.gpu

chaos: .venv/.tested ## Kill, cut off and fill up the service under load, and look for lost jobs (some minutes)
	$(ONE_THREAD) $(BIN)/python -m chaos

clean: ## Remove the virtual environment and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build demo *.egg-info

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv (a minute or two, once) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python tools/torch_index.py constraints.txt
	@$(PIP) -e .
	@touch $@

.venv/.tested: .venv/.installed peers.txt
	@echo "Installing the test tools into .venv …"
	@$(PIP) -e .[dev]
	@$(PIP) --no-deps -r peers.txt
	@touch $@

$(AXE): api_tests/dashboard/package.json api_tests/dashboard/package-lock.json
	@mkdir -p build/npm && cp $^ build/npm
	@npm ci --prefix build/npm --ignore-scripts --no-audit --no-fund --silent && touch $@ \
		|| echo "axe-core could not be fetched with npm: accessibility will not be tested"
