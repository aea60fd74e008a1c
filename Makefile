# Everything runs in .venv, made on first use from the ranges in pyproject.toml and the versions in
# constraints.txt. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INPUT ?=
SEEDS ?= 100
FROM ?= 1
JOBS ?= $(shell nproc)

.DEFAULT_GOAL := help
.PHONY: help demo test sim check proto format docs clean test-deps deploy-tools deploy-checks bench

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready  ## Start three nodes, append the standard library's source, kill one, read it back (INPUT=path for yours)
	@$(BIN)/python -m bench.demo $(if $(INPUT),--input '$(INPUT)')

test: $(VENV)/.ready  ## Run the tests
	@$(BIN)/python -m pytest -q -n auto --dist worksteal

sim: $(VENV)/.ready  ## Simulate faults over SEEDS=n seeds FROM=m on JOBS=j processors; docs/simulation.md
	@PYTHONPATH=.:tests $(BIN)/python -m helpers.sim.run --seeds $(SEEDS) --from $(FROM) --jobs $(JOBS) $(SIM_ARGS)

check: $(VENV)/.ready  ## Format, lint, types, stubs, tidiness
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python tools/proto.py --check
	@$(BIN)/python -m pytest -q tests/test_tidy.py

format: $(VENV)/.ready  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(VENV)/.ready  ## Make the stubs in sharedlog/v1 from proto/
	@$(BIN)/python tools/proto.py

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## Build the documentation, with the API's, into site/
	@$(BIN)/python -m zensical build --clean --strict
	@echo "open site/index.html"

test-deps:  ## Install the Debian packages that some tests and benchmarks use (needs root)
	apt-get update -qq && apt-get install -y -qq --no-install-recommends etcd-server iproute2 nats-server openssl prometheus redis-server systemd

$(VENV)/.deploy: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[deploy-checks]'
	@touch $@

deploy-tools: $(VENV)/.deploy  ## Install the tools that check deploy/ (350 MB)

deploy-checks: $(VENV)/.deploy  ## Check deploy/ with tools that the other targets do not need
	@$(BIN)/python -m pytest -q tests/deploy

bench: $(VENV)/.ready  ## Compare with etcd, NATS JetStream and Redis Streams (make test-deps installs them)
	@$(BIN)/python -m bench.peers $(BENCH_ARGS)

clean:  ## Remove what was made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache dist site
