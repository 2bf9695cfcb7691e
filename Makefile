# Two commands do everything: `make demo` and `make test`. They need python3 (3.11 to 3.13), pip and make.
# `make help` lists the others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
TEST := $(VENV)/.test
DOCS := $(VENV)/.docs
RELEASE := $(VENV)/.release

TRITON := .venv-triton

.PHONY: help demo test test-all coverage lint types docs clean triton audit release hashes licences

help:
	@echo "demo      export the Q-Former at its published size, prove it, run it, time it"
	@echo "test      lint, types, documentation, and all tests that need no GPU"
	@echo "test-all  published sizes, long matrices and servers under load, too"
	@echo "lint      ruff: lint and format"
	@echo "types     mypy, strict"
	@echo "docs      the documentation, strictly, into site/"
	@echo "coverage  docs/reference/coverage.md, written anew"
	@echo "triton    the real tritonserver, in an environment of its own"
	@echo "audit     known faults of the pinned packages (asks a public database)"
	@echo "release   wheel and sources, the same bytes from the same commit, and the SBOM, into dist/"
	@echo "hashes    constraints-hashes.txt, of constraints.txt"
	@echo "licences  docs/reference/licences.md, of the environment"
	@echo "clean     remove environments, caches and what was built"

# What the tests need holds all that the demo needs.
demo: $(if $(wildcard $(TEST)),$(TEST),$(DEMO))
	$(BIN)/python examples/demo.py

test: $(TEST) lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(TEST) $(TRITON)/.installed lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal

coverage: $(TEST)
	$(BIN)/python tests/coverage/table.py

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST)
	$(BIN)/mypy

# The quick tests build the same into a folder of their own. What the tests need holds all that this needs.
docs: $(if $(wildcard $(TEST)),$(TEST),$(DOCS))
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

audit: $(RELEASE)
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r constraints-hashes.txt

# Bytes depend on the commit alone: its own files, with the same modes everywhere, and its time for all times.
release: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
release: $(TEST) $(RELEASE)
	rm -rf dist build
	mkdir -p dist build/source
	umask 022 && git archive HEAD | tar x -C build/source
	umask 022 && $(BIN)/python -m build --no-isolation --wheel --sdist --outdir dist build/source
	$(BIN)/python .ci/repack.py dist/*.tar.gz
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o dist/crossfuse.cdx.json $(VENV)
	cp constraints-hashes.txt dist/

hashes: $(TEST)
	$(BIN)/python .ci/hashes.py

licences: $(TEST)
	$(BIN)/python .ci/licences.py

$(DEMO): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	touch $@

$(DOCS): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

$(RELEASE): pyproject.toml constraints.txt .ci/release.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -r .ci/release.txt
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
	rm -rf $(VENV) $(TRITON) demo-bundle site .pytest_cache .mypy_cache .ruff_cache
