# make demo   the smallest whole experiment, from nothing
# make test   the fast test suite
# make check  style, format and types
# make bench  speed, side by side with a bare training loop
# make bench-lm  the same for language models
# make docs   the documentation, into docs/_build/html

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.ready-docs

# One thread for each of the two test processes; more would only get in each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test check bench bench-lm docs clean

demo: $(READY)
	$(BIN)/expunge demo

test: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 -m "not slow" tests

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python bench/speed.py

bench-lm: $(READY)
	$(ONE_THREAD) $(BIN)/python bench/language.py

docs: $(DOCS)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@
