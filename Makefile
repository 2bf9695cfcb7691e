# Two commands do everything: `make demo` and `make test`. They need python3 (3.11 to 3.13), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TRITON := .venv-triton

.PHONY: demo test test-all coverage lint clean triton

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP) $(TRITON)/.installed lint
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

# The real tritonserver, in an environment of its own: its Python backend wants NumPy 1.
triton: $(TRITON)/.installed

$(TRITON)/.installed: pyproject.toml
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install -q "numpy<2" "onnxruntime==1.31.1"
	$(TRITON)/bin/python -m pip install -q --no-deps -e . "nvidia-pytriton==0.7.0"
	touch $@

clean:
	rm -rf $(VENV) $(TRITON) demo-bundle .pytest_cache .mypy_cache .ruff_cache
