# `make help` lists the targets.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help setup setup-test run up down status check kafka test test-fast test-long test-faults coverage bench-ingest bench-model bench-training bench-devices bench-arrival bench-week bench-batch bench-serving lint lock clean

PYTHON ?=
ARGS ?=
SEED ?= 20170102
EVENTS ?= 100000
KILLS ?= 12
ROWS ?= 1000000
python := .venv/bin/python
# Three workers where many tests wait, two where none does; a folder's tests stay in one of them, with its servers (tests/conftest.py).
pytest := pytest tests --dist loadscope --no-loadscope-reorder
compile := UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --override overrides.txt

# DATASET=path/to/shop.toml chooses the shop for this command; relative to the folder of this file.
ifdef DATASET
export CARTWHEEL_DATASET := $(if $(filter /%,$(firstword $(DATASET))),$(DATASET),$(CURDIR)/$(DATASET))
endif

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install everything into .venv (PYTHON=... to choose an interpreter)
	@PYTHON='$(PYTHON)' sh deploy/local/setup.sh

setup-test: ## Install what tests need, too
	@PYTHON='$(PYTHON)' sh deploy/local/setup.sh test

run: setup ## Start everything, run the whole loop, stay up until Ctrl-C (ARGS=--once, DATASET=...)
	@$(python) -m deploy.local run $(ARGS)

up: setup ## Start everything without running the loop
	@$(python) -m deploy.local up

down: setup ## Stop everything, also what a killed run left behind
	@$(python) -m deploy.local down

status: setup ## Show what is running, its memory and its address
	@$(python) -m deploy.local status

check: setup ## Check a shop's data before running on it (DATASET=...)
	@$(python) -m deploy.local check $(ARGS)

kafka: setup ## Run a real Apache Kafka on this machine until Ctrl-C, to try it as a source (ARGS=--port=...)
	@$(python) -m deploy.local.kafka $(ARGS)

test: setup-test ## Set up and run the tests (ARGS=... for pytest)
	@$(python) -m deploy.local prepare
	@$(python) -m $(pytest) --numprocesses 3 -m "not long" $(ARGS)

test-fast: setup-test ## Run the tests that need a few seconds each
	@$(python) -m deploy.local prepare
	@$(python) -m $(pytest) --numprocesses 2 -m "not slow and not long" $(ARGS)

test-long: setup-test ## Run what needs an hour: full data, many kills, much fuzzing (SEED=..., EVENTS=..., KILLS=...)
	@$(python) -m deploy.local prepare
	@$(python) -m pytest tests -m long --ignore=tests/faults $(ARGS)
	@CARTWHEEL_TEST_FUZZ_EXAMPLES=200 $(python) -m pytest tests/spark_jobs/test_fuzz.py $(ARGS)
	@$(MAKE) test-faults

test-faults: setup-test ## Kill everything while many events land (SEED=..., EVENTS=..., KILLS=...)
	@$(python) -m deploy.local prepare
	@CARTWHEEL_TEST_FAULTS_SEED=$(SEED) CARTWHEEL_TEST_FAULTS_EVENTS=$(EVENTS) CARTWHEEL_TEST_FAULTS_KILLS=$(KILLS) \
		$(python) -m pytest tests/faults -s $(ARGS)

coverage: setup-test ## Run the tests and list the lines and branches that none of them reaches (half an hour)
	@$(python) -m deploy.local prepare
	@$(python) -m coverage erase
	@$(python) -m coverage run -m $(pytest) --numprocesses 3 -m "not long" $(ARGS)
	@$(python) -m coverage combine --quiet
	@$(python) -m coverage report

bench-ingest: setup-test ## Measure landing from each source beside a plain copy by Spark (ROWS=...)
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.ingest --rows $(ROWS)

bench-model: setup-test ## Measure the model beside every baseline, on the tables that `make run` has filled
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.model

bench-training: setup-test ## Measure memory and speed of training with 1, 10 and 30 times the users (after `make run`)
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.training

bench-devices: setup-test ## Measure training on the CPU and, where there is one, the GPU (after `make run`)
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.devices

bench-arrival: setup-test ## Measure how long after an event its row is in silver, landing each minute (forty minutes)
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.arrival $(ARGS)

bench-week: setup-test ## Measure what one more week costs shops with 1, 3 and 10 times the history (twenty minutes)
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.week

bench-batch: setup-test ## Measure recommending to all users by Spark beside the model's function alone (after `make run`)
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.batch

bench-serving: setup-test ## Measure the gateway beside the model server alone (after `make run`; needs wrk)
	@$(python) -m deploy.local prepare
	@$(python) -m tests.benchmarks.serving $(ARGS)

lint: setup-test ## Check style, types and the law of imports
	@$(python) -m ruff check .
	@$(python) -m mypy
	@.venv/bin/lint-imports

lock: ## Resolve pyproject.toml into both lock files again (needs uv)
	@$(compile) pyproject.toml -o requirements.lock
	@$(compile) --group test --constraint requirements.lock -o requirements-test.lock

clean: ## Stop everything and delete .venv, caches and all state in var/
	@if [ -x $(python) ]; then $(python) -m deploy.local down; fi
	rm -rf .venv var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
