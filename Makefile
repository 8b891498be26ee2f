# Two commands on a bare machine (Python 3.11+, make): `make quickstart` and `make test`.
# Each builds .venv on first use from the exact versions in constraints.txt and does nothing twice: a stamp is written
# only after a complete installation, and is older than pyproject.toml or constraints.txt when they change.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERAS_VENV := .venv-keras
EXECUTORCH_VENV := .venv-executorch
INPUTS := $(VENV)/.created pyproject.toml constraints.txt
# pip's own output is hundreds of lines, or with -q silence for minutes; one line a package shows that it lives
PROGRESS := awk '/^Collecting/ {print "  " $$2; fflush()} /^Installing collected/ {print "  unpacking ..."; fflush()}'
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable

# Two processes with one thread each are faster here than one with two: the models of the tests are tiny.
PYTEST_ARGS ?= -n 2
export TOKENIZERS_PARALLELISM := false

.PHONY: help quickstart test test-browser test-keras test-executorch check lint types format lock clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.quickstart ## distil a real pretrained teacher on this machine, no hub needed
	@$(BIN)/lightning-distilbert quickstart

test: $(VENV)/.dev ## run every test, doctest and documented code block
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-browser: $(VENV)/.browser ## run an exported student in a headless Chromium (npm and chromium are needed)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/integration/test_integration_browser.py

test-keras: $(KERAS_VENV)/.tests ## run the tests of the formats keras and litert, in an environment with TensorFlow
	@OMP_NUM_THREADS=1 $(KERAS_VENV)/bin/python -m pytest $(addprefix tests/unit/deploy/test_,keras.py keras_model.py litert.py)

test-executorch: $(EXECUTORCH_VENV)/.tests ## run the tests of the format executorch, in an environment of its own
	@OMP_NUM_THREADS=1 $(EXECUTORCH_VENV)/bin/python -m pytest tests/unit/deploy/test_executorch.py

check: lint types ## lint, formatting and types

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the sources in the house format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## write constraints.txt anew from the newest releases that pyproject.toml admits
	@tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; \
	"$$tools/bin/python" -m pip install --editable '.[dev,quickstart,data,ner,retrieval,onnx,openvino,serve,translation]' 'torch==2.13.0' | $(PROGRESS); \
	head=$$(sed -n '/^#/p' constraints.txt); \
	{ printf '%s\n' "$$head"; "$$tools/bin/python" -m pip freeze --all --exclude-editable --exclude pip \
		| sed 's/+[a-z0-9.]*$$//'; } > "$$tools/new"; \
	cp "$$tools/new" constraints.txt

clean: ## remove .venv and everything that tests and builds leave behind
	rm -rf $(VENV) $(KERAS_VENV) $(EXECUTORCH_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache examples/browser/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed and $(PYTHON) is {sys.version.split()[0]}. Name another one: make PYTHON=python3.12 ...")'
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.quickstart: $(INPUTS)
	@echo "Installing the packages of the quickstart into $(VENV) (once; a few minutes)"
	@$(INSTALL) '.[quickstart]' | $(PROGRESS)
	@touch $@

# holds the quickstart's packages too, so it stamps both
$(VENV)/.dev: $(INPUTS)
	@echo "Installing the packages of the tests into $(VENV) (once; a few minutes)"
	@$(INSTALL) '.[dev,quickstart,data,ner,retrieval,onnx,openvino,serve,translation]' | $(PROGRESS)
	@touch $(VENV)/.quickstart $@

# Playwright drives the system's Chromium: its own would be a download from elsewhere than the package registries
$(VENV)/.browser: $(VENV)/.dev examples/browser/package-lock.json
	@for command in npm chromium; do command -v $$command > /dev/null \
		|| { echo "$$command is missing. On Debian: apt-get install npm chromium"; exit 1; }; done
	@npm ci --ignore-scripts --no-audit --no-fund --prefix examples/browser
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt 'playwright==1.65.2' | $(PROGRESS)
	@touch $@

# apart from the other tests: TensorFlow is 2 GB, and ExecuTorch brings packages that other extras do not go with
.venv-%/.tests: pyproject.toml constraints.txt
	@echo "Installing the packages of the $* tests into .venv-$* (once; some minutes)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt \
		--editable '.[$*]' pytest pytest-timeout | $(PROGRESS)
	@touch $@
