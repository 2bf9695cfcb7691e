# Two commands do everything: `make demo` and `make test`. They need python3 (3.11 to 3.13), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
TEST := $(VENV)/.test

TRITON := .venv-triton

.PHONY: demo test test-all coverage lint clean triton

# What the tests need holds all that the demo needs.
demo: $(if $(wildcard $(TEST)),$(TEST),$(DEMO))
	$(BIN)/python examples/demo.py

test: $(TEST) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(TEST) $(TRITON)/.installed lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

coverage: $(TEST)
	$(BIN)/python tests/coverage/table.py

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(DEMO): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	touch $@

# Both packages of ONNX Runtime hold the module `onnxruntime`: the demo's gives way to the tests'.
$(TEST): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip uninstall -q -y onnxruntime
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
