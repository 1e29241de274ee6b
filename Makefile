# Every verb makes .venv when it is missing. Only python3 and make are needed; packages come from PyPI.
#
# What is installed is in requirements.lock, and every file of it is checked against its sha256. The lock is written from
# constraints.txt by `make lock` and never by hand. One package is checked by its version alone, since each index has a build
# of its own: torch. PyPI's build for Linux may bring CUDA along, which is refused (tests/test_environment.py); a CPU build comes
# with
#     make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
# and one that is checked too with TORCH="torch @ https://.../torch-....whl#sha256=..."

PYTHON      ?= python3
TORCH       ?= torch
TORCH_INDEX ?=
VENV        := .venv
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.ready
PIP         := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# one interrupted, or made by uv, has no pip
WITH_PIP    := $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
# two workers, one thread each: more threads than cores only wait for each other
THREADS     := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
WORKERS     ?= 2
PROGRAMS    ?= 2000
SEED        ?= 0

.PHONY: help demo test test-all fuzz docs docs-check bench lint lock licenses sbom audit clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch comes second: what it needs is there by then, so that nothing unchecked comes with it
$(STAMP): pyproject.toml constraints.txt requirements.lock
	$(WITH_PIP)
	$(PIP) --require-hashes --no-deps --only-binary :all: -r requirements.lock
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --only-binary :all: -c constraints.txt "$(TORCH)"
	$(PIP) --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	$(BIN)/python tests/test_environment.py
	touch $@

demo: $(STAMP)  ## explain a photo and a sentence; writes demo/index.html
	$(BIN)/termwise demo --out demo

test: $(STAMP)  ## the tests, without the slow ones
	$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-all: $(STAMP)  ## every test
	$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m ""

fuzz: $(STAMP)  ## random programs through everything: PROGRAMS=2000 SEED=0
	$(THREADS) $(BIN)/python -m tests.fuzz --programs $(PROGRAMS) --seed $(SEED) --workers $(WORKERS)

docs: $(STAMP)  ## the documentation, into docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

docs-check: docs  ## the documentation's links, spelling and examples
	$(THREADS) $(BIN)/python -m sphinx -q -W -b doctest docs docs/_build/doctest
	$(BIN)/python docs/check.py docs/_build/html

bench: $(STAMP)  ## every benchmark, against its peers, interleaved
	set -e; for script in benchmarks/*.py; do $(BIN)/python $$script; done

lint: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:  ## requirements.lock, anew from constraints.txt: every pin, and the sha256 of each of its files for every platform
	$(WITH_PIP)
	$(BIN)/python -m uv --version >/dev/null 2>&1 || $(PIP) -c constraints.txt uv
	$(BIN)/python -m uv pip compile constraints.txt --no-config --default-index https://pypi.org/simple --no-deps \
		--universal --python-version 3.11 --generate-hashes --no-emit-package torch --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements.lock

licenses: $(STAMP)  ## the licence of every dependency; GPL is refused
	$(BIN)/python .ci/licenses.py

sbom: $(STAMP)  ## what is installed, as CycloneDX, into dist/sbom.json
	mkdir -p dist
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --no-validate --output-reproducible --of JSON -o dist/sbom.json

audit: $(STAMP)  ## known faults of what is locked; ends with 75 where nobody could be asked
	$(BIN)/python .ci/audit.py

clean:  ## remove everything made here
	rm -rf $(VENV) build dist demo docs/_build docs/_generated docs/gallery docs/learn src/*.egg-info
