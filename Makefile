# Two commands do everything: `make demo` and `make test`. They need python3 (3.11 to 3.13), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all coverage lint clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

coverage: $(STAMP)
	$(BIN)/python tests/coverage/table.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps tensorrt-stubs
	touch $@

clean:
	rm -rf $(VENV) demo-bundle .pytest_cache .mypy_cache .ruff_cache
