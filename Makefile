# Everything runs in a virtual environment of the checkout, which `env` creates once and then reuses.
PYTHON ?= python3
VENV ?= .venv
# More threads than free cores make CPU inference many times slower: they spin while they wait.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench bench-long bench-check docs env model clean

demo: model  ## the code_writer application against a real server
	$(VENV)/bin/python -m examples.code_writer

test: model  ## in two processes at once; `.venv/bin/python -m pytest` for one, or for some of them
	tests/in_halves.sh $(VENV)/bin/python

lint: env
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/python -m mypy

# Runs at a time; each takes a core and about half a gigabyte.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc)

bench: env  ## the standard matrix in virtual time; says beforehand how long, and resumes
	$(VENV)/bin/python -m benchmarks.matrix run --jobs $(JOBS)

LONG_SETS = limits sensitivity sessions sharing headline noise noise-load host link load
bench-long: env  ## hours: what else is compared on the standard cells, and the sets with five seeds
	$(VENV)/bin/python -m benchmarks.matrix run --jobs $(JOBS) \
		--systems 'tokencake-no-*,tokencake-temporal,tokencake-spatial,tokencake-reserve,tokencake-chat-*,reopen-*,oracle-*'
	for set in $(LONG_SETS); do \
		$(VENV)/bin/python -m benchmarks.matrix run --jobs $(JOBS) --set $$set || exit 1; \
	done

bench-check: env  ## a small slice of it again: fails if a committed figure does not come out
	$(VENV)/bin/python -m benchmarks.matrix check --jobs $(JOBS)

docs: env  ## docs/benchmarks.md and its plots, from committed results
	$(VENV)/bin/python -m benchmarks.report

env:
	@PYTHON=$(PYTHON) environments/cpu/create.sh $(VENV)

model: env  ## a small real model, converted once into the user's cache
	@$(VENV)/bin/python -m examples.smollm2

clean:  ## everything the targets above made inside the checkout
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
