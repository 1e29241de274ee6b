# Every verb makes .venv when it is missing. Only python3 and make are needed; packages come from PyPI.
#
# torch: PyPI's build for your platform. On Linux that build may bring CUDA along, which is refused (see
# tests/test_environment.py); a CPU build comes with
#     make test TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON      ?= python3
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=
VENV        := .venv
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.ready
PIP         := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# two workers, one thread each: more threads than cores only wait for each other
THREADS     := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
WORKERS     ?= 2

.PHONY: help demo test test-all docs bench lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)  # one interrupted, or made by uv, has no pip
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)" --only-binary :all:
	$(PIP) -e ".[test,dev,docs,peers]"
	$(BIN)/python tests/test_environment.py
	touch $@

demo: $(STAMP)  ## explain a photo and a sentence; writes demo/index.html
	$(BIN)/termwise demo --out demo

test: $(STAMP)  ## the tests, without the slow ones
	$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-all: $(STAMP)  ## every test
	$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m ""

docs: $(STAMP)  ## the documentation, into docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

bench: $(STAMP)  ## every benchmark, against its peers, interleaved
	set -e; for script in benchmarks/*.py; do $(BIN)/python $$script; done

lint: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove everything made here
	rm -rf $(VENV) build dist demo docs/_build docs/gallery src/*.egg-info
