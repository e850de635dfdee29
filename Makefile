# Each target makes the environment from pyproject.toml on first use; nothing else needs setting up.
VENV ?= .venv
RESULTS ?= results
PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 2

RUN = $(VENV)/bin/python -P

.PHONY: demo test check examples docs bench verify clean

demo: $(VENV)/.ready            ## the main job: a real model gets better and smaller; a table and a picture
	$(RUN) examples/mnist.py --quick --save $(RESULTS)

test: $(VENV)/.ready            ## the whole suite, examples in docstrings and README included
	$(VENV)/bin/pytest -n 2

check: $(VENV)/.ready           ## lint
	$(VENV)/bin/ruff check .

examples: $(VENV)/.ready        ## every example, the short way
	for script in examples/*.py; do $(RUN) $$script --quick --save $(RESULTS) || exit 1; done

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

clean:
	rm -rf $(VENV) $(RESULTS) build dist site
