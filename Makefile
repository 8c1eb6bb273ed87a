# Every verb builds the environment by itself when it is missing or older than its description.
#   make demo        pictures from the embedded model, in out/demo
#   make test        everything that is not marked slow, under 10 minutes on two cores
#   make test-slow   the rest; it should stay under 40 minutes
#   make test-faults all kills and lost connections in whole jobs, an hour or more; test-slow runs some of them
#   make lint        ruff, mypy --strict, import-linter
#   make bench       side-by-side runs, results under benchmarks/results
#   make clean       removes the environment, the caches and out/demo
# Variables: PYTHON (3.11 or 3.12), VENV (default .venv), PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

# A warm machine has few cores and many processes: one thread each.
export OMP_NUM_THREADS ?= 1
export PYTHONPATH :=

bin := $(VENV)/bin
stamp := $(VENV)/.installed

# uv does not read pip's configuration: folders of wheels that pip looks in are handed over, those that exist
# (a missing one is an error to uv). torch goes first and alone, so that whatever build is offered there is the one.
pip_folders = $(PIP_FIND_LINKS) $(shell $(bin)/python -m pip config get global.find-links 2>/dev/null)
find_links = $(foreach folder,$(sort $(pip_folders)),$(if $(wildcard $(folder)),--find-links $(folder)))
with_uv = $(bin)/uv pip install --quiet --python $(bin)/python -c constraints.txt $(find_links)
with_pip = $(bin)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
project = --editable '.[dev,s3,train,trackers]'

.PHONY: demo test test-slow test-faults lint bench clean venv
.DEFAULT_GOAL := test

venv: $(stamp)

$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and \
	    "python 3.11 or 3.12 is needed: make PYTHON=python3.11")'
	@test -x $(bin)/python || { echo "making $(VENV) (about a minute, 2 GB)" >&2; $(PYTHON) -m venv $(VENV); }
	@$(with_pip) uv || echo "uv cannot be had; pip does it, slower" >&2
	@if test -x $(bin)/uv; then \
	    $(with_uv) torch && $(with_uv) $(project); \
	else false; fi || { $(with_pip) torch && $(with_pip) $(project); }
	@touch $@

demo: $(stamp)
	@$(bin)/sdxl generate sdxl_core/assets/demo_prompts.csv out/demo --model tiny $(DEMO_ARGS)
	@echo "open $(CURDIR)/out/demo/gallery.html"

test: $(stamp)
	@$(bin)/python -m pytest -q $(PYTEST_ARGS)

test-slow: $(stamp)
	@$(bin)/python -m pytest -q -m "slow and (not faults or chosen)" --timeout 900 $(PYTEST_ARGS)

test-faults: $(stamp)
	@$(bin)/python -m pytest -q -m faults --timeout 900 $(PYTEST_ARGS)

lint: $(stamp)
	@$(bin)/ruff check --quiet .
	@$(bin)/ruff format --quiet --check . || { $(bin)/ruff format --diff --quiet .; exit 1; }
	@$(bin)/mypy
	@$(bin)/lint-imports

bench: $(stamp)
	@$(bin)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) out/demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
	    .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
