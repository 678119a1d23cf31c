# What can be done here; `make help` lists it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: help
help: ## list what can be done
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what requirements.lock pins into $(VENV)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: lock
lock: ## pin the dependencies of pyproject.toml again, with hashes
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev \
	    --generate-hashes --no-header --no-emit-index-url --upgrade \
	    pyproject.toml --output-file requirements.lock
