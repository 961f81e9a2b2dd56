# `make demo` shows netgrow at work, `make test` runs its tests; both set up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint samples bench clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,samples]'
	touch $(READY)

demo: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" bash demo.sh

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

samples: $(READY)
	$(BIN)/python sample_checkpoints/make.py

bench: $(READY)
	$(BIN)/python benchmarks/startup.py

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info
