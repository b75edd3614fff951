# AgentAuth. `make help` lists what there is; every target sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
# CI has a faster one, tests/install.sh.
INSTALL ?= $(BIN)/python -m pip install --quiet --disable-pip-version-check
UNIT := unit
BIN := $(VENV)/bin
MANAGE := $(BIN)/python manage.py
.DEFAULT_GOAL := help
.PHONY: help run demo test check lint static unit coverage audit long campaign docs screenshots bench lock

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/run.stamp: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	$(INSTALL) --require-hashes -r requirements-dev.txt
	@touch $@

run: $(VENV)/run.stamp ## the whole system on http://localhost:8000, SQLite in var/, no services
	$(MANAGE) serve

demo: $(VENV)/run.stamp ## a demo agent and a demo service provider against `make run`
	$(BIN)/python -m examples.demo

check: lint ## lint, types, import stack, migrations, unit tests on SQLite (three minutes on two cores)
	$(MAKE) -j2 static unit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

static: $(VENV)/dev.stamp
	$(BIN)/mypy .
	$(BIN)/lint-imports --no-cache
	$(MANAGE) makemigrations --check --dry-run

unit: $(VENV)/dev.stamp
	$(BIN)/python -m tests.run $(UNIT)

# `rest` runs the database tests of the approvals on PostgreSQL, so they are left out here. Its
# browser tests go through their pages on SQLite.
test: lint ## everything: check, then PostgreSQL, flows, browser, faults, interop, vectors
	@# All of it, whatever fails: a run in CI should name every failure.
	status=0; $(MAKE) -k -j2 static unit UNIT=unit-before-rest || status=$$?; \
	  $(BIN)/python -m tests.run rest || status=$$?; exit $$status

coverage: $(VENV)/dev.stamp ## branches and lines the unit tests take, per package; 95 % of the branches at least
	$(BIN)/python -m tests.run coverage

audit: $(VENV)/dev.stamp ## scan the code, look the locked packages up in advisories, write sbom.json
	$(BIN)/python -m tests.scan

long: $(VENV)/dev.stamp ## what CI leaves out, at CI's counts (half an hour on two cores)
	$(BIN)/python -m tests.run long

campaign: $(VENV)/dev.stamp ## the long runs in full: kills, concurrency rounds, fuzzing
	CAMPAIGN=1 FAULTS_TABLE=tests/faults/RESULTS.md $(BIN)/python -m tests.run campaign

docs: $(VENV)/dev.stamp ## the documentation site, into var/site; fetches nothing
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

screenshots: $(VENV)/dev.stamp ## every page and state at 390 and 1440 px, light and dark, into screenshots/
	$(BIN)/python -m tests.run screenshots

bench: $(VENV)/dev.stamp ## measure; alone on the machine
	$(BIN)/python -m benchmarks.verify
	$(BIN)/python -m benchmarks.sdk_verifier
	$(BIN)/python -m benchmarks.postgresql_ceiling
	$(BIN)/python -m benchmarks.event_processing
	$(BIN)/python -m benchmarks.verification_cpu
	$(BIN)/python -m benchmarks.log_growth
	$(BIN)/python -m benchmarks.log_queries
	$(BIN)/python -m benchmarks.verify_log
	$(BIN)/python -m benchmarks.verify_audit

lock: ## compile the lock files with hashes
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras requirements.in -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras requirements-production.in -o requirements-production.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras requirements-dev.in -o requirements-dev.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras tests/uv.in -o tests/uv.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras tests/ministack.in -o tests/ministack.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras tests/frameworks/autogen.in -o tests/frameworks/autogen.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras tests/frameworks/langchain.in -o tests/frameworks/langchain.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras tests/frameworks/openai-agents.in -o tests/frameworks/openai-agents.txt
