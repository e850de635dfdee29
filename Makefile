# Each target makes the environment from pyproject.toml on first use; nothing else needs setting up.
VENV ?= .venv
RESULTS ?= results
PYTHON ?= python3
M ?=
export TF_CPP_MIN_LOG_LEVEL ?= 2

RUN = $(VENV)/bin/python -P
TESTS = $(if $(M),$(wildcard tests/test_$(M)*.py) tests/test_common.py tests/test_docs.py tests/test_words.py -k $(M))

EXAMPLES = $(wildcard examples/*.py)

.PHONY: help demo flagship test test-all check examples $(EXAMPLES) docs bench verify clean

help:                           ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: $(VENV)/.ready            ## the main job: a real model gets better and smaller; a table and a picture
	$(RUN) examples/mnist.py --quick --save $(RESULTS)

flagship: $(VENV)/.ready        ## the figures at the top of the README (hours; broken off, it goes on where it was)
	$(RUN) examples/flagship.py --save $(RESULTS)
	$(RUN) benchmarks/verify/compress.py fashion

test: $(VENV)/.ready            ## the quick tests, in minutes; `make test M=prune`: those of one module
	$(VENV)/bin/pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

test-all: $(VENV)/.ready        ## all tests
	$(VENV)/bin/pytest -n 2 --dist loadfile

check: $(VENV)/.ready           ## lint, spelling, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/codespell *.md docs tfopt tests examples benchmarks
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

examples: $(EXAMPLES)           ## every example, the short way

$(EXAMPLES): $(VENV)/.ready
	$(RUN) $@ --quick --save $(RESULTS)

bench: $(VENV)/.ready           ## every claim about cost: one ratio per line, kept in docs/measured/bench.txt
	$(RUN) benchmarks/run.py

verify: $(VENV)/.ready          ## the heavy sweeps whose results the docs quote (hours)
	for script in benchmarks/verify/*.py; do $(RUN) $$script || exit 1; done

docs: $(VENV)/.ready            ## the site, strictly
	$(VENV)/bin/pip install --quiet -e '.[docs]'
	$(VENV)/bin/mkdocs build --strict

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[test]'
	touch $@

clean:                          ## without the environment, and what was built
	rm -rf $(VENV) $(RESULTS) build dist site
