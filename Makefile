# `make demo` shows netgrow at work, `make test` runs its tests; both set up .venv first. `make zoo` runs netgrow on a
# sample of torchvision's and timm's models, in an environment of its own.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

ZOO = .venv-zoo
ZOO_READY = $(ZOO)/.ready

.PHONY: demo test lint samples bench studies zoo zoo-table clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,samples]'
	$(BIN)/python -m compileall -q netgrow_cli
	touch $(READY)

demo: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" bash demo.sh

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The models of torchvision, timm and transformers need a torch of their own: some gigabytes.
$(ZOO_READY): pyproject.toml constraints-zoo.txt
	test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-zoo.txt -e '.[zoo]'
	touch $(ZOO_READY)

# What needs transformers beside the zoo's own tests.
HF_TESTS = tests/folders/test_transformers.py tests/checkpoint/test_trainer_state.py tests/checkpoint/test_folder.py \
	tests/topology/test_shipped.py tests/topology/test_trace_transformers.py tests/topology/test_trace_mixtures.py

zoo: $(ZOO_READY)
	$(ZOO)/bin/python -m pytest tests/zoo $(HF_TESTS)

zoo-table: $(ZOO_READY)
	$(ZOO)/bin/python -m benchmarks.zoo.run
	$(ZOO)/bin/python -m benchmarks.zoo.table

samples: $(READY)
	$(BIN)/python sample_checkpoints/make.py

bench: $(READY)
	$(BIN)/python -m benchmarks.startup

# Networks in training, recycled and grown: minutes. What is kept in benchmarks/*.jsonl is not run again.
studies: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.recycling
	$(BIN)/python -m benchmarks.growing

clean:
	rm -rf $(VENV) $(ZOO) demo-out build dist *.egg-info
