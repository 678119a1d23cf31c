# What can be done here; `make help` lists it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
READY := $(VENV)/.installed
PROTO := $(BIN)/python -m grpc_tools.protoc -I proto
DESCRIBED := $(BIN)/buf build proto --exclude-imports --output -
REFERENCE := proto/ledger/v1/README.md
# What the callers of the last release were promised. A release takes the proto as it is then:
# .venv/bin/buf build proto --exclude-source-info --output proto/released.binpb
RELEASED := proto/released.binpb

.PHONY: help run demo test hammer fuzz lint format proto bench lock clean

help: ## list what can be done
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 …"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing what requirements.lock pins into $(VENV)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: $(READY) ## start everything: Postgres, the ingress, the gRPC service
	@exec $(BIN)/ledger run

demo: $(READY) ## show the main job on a throw-away database, and stop
	@$(BIN)/ledger demo

test: $(READY) ## run the whole test suite
	@$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

hammer: $(READY) ## race writers for ten minutes, then reconcile
	@HAMMER_SECONDS=600 $(BIN)/python -m pytest tests/test_hammer.py -s

fuzz: $(READY) ## throw random deliveries at the whole ingress for minutes
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-30000} $(BIN)/python -m pytest tests/ingress/test_fuzz.py -s
	@$(BIN)/python -m tests.fuzz

lint: $(READY) ## check format, types, the proto, and that generated files are fresh
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/buf lint proto
	@$(BIN)/buf breaking proto --against $(RELEASED)
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT \
	    && $(PROTO) --python_out=$$fresh --pyi_out=$$fresh --grpc_python_out=$$fresh ledger/v1/ledger.proto \
	    && mkdir -p $$fresh/$(dir $(REFERENCE)) \
	    && $(DESCRIBED) | $(BIN)/python tools/reference.py $$fresh/$(REFERENCE) \
	    && for file in $(addprefix ledger/v1/,ledger_pb2.py ledger_pb2.pyi ledger_pb2_grpc.py) $(REFERENCE); do \
	        cmp -s $$fresh/$$file $$file || { echo "$$file is stale: run make proto"; exit 1; }; done

format: $(READY) ## format the code
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

proto: $(READY) ## generate ledger/v1 and the reference from proto/ again
	@$(PROTO) --python_out=. --pyi_out=. --grpc_python_out=. ledger/v1/ledger.proto
	@$(DESCRIBED) | $(BIN)/python tools/reference.py $(REFERENCE)

bench: $(READY) ## measure, and print each figure beside what it is compared with
	@$(BIN)/python -m tests.bench

lock: $(READY) ## pin the newest versions that pyproject.toml allows, with hashes
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev \
	    --generate-hashes --no-header --no-emit-index-url --upgrade \
	    pyproject.toml --output-file requirements.lock

clean: ## remove what was installed and built; never the data
	@rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
