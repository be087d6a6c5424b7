# Everything runs in a virtual environment of its own; nothing else is needed
# than Python 3.11 or newer. PYTHON=python3.12 make test chooses another.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test faults parity check bench clean

demo: $(VENV)/.demo
	$(BIN)/danlu run recipes/reviews.toml
	$(BIN)/danlu predict runs/reviews "这家酒店的早餐很难吃" "房间干净，服务热情，下次还来"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# As `make test` does with 20 kills, with 200; five minutes.
faults: $(VENV)/.dev
	DANLU_KILLS=200 $(BIN)/python -m pytest tests/faults -s

# Recipes at full size beside references that are written in the tests; half an hour.
parity: $(VENV)/.dev
	DANLU_PARITY=1 $(BIN)/python -m pytest tests/recipes -s

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules src -q -p no:cacheprovider

bench: $(VENV)/.bench
	for name in pretrain finetune quality scaling defaults checkpoint; do \
	  $(BIN)/python benchmarks/$$name.py --short || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.demo
