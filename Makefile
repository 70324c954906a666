# `make demo` and `make test` are all that a clean clone needs; both set up .venv first.
PYTHON ?= python3
RUNNER ?= process
# Tests wait more than they compute: one more at a time than there are processors.
TESTS_AT_ONCE ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
BIN := .venv/bin
# Tests start hundreds of processes: each would compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test soak lint format bench clean
.DEFAULT_GOAL := demo

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Setting up .venv (once) …"
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[server,postgres]' --group dev
	@touch $@

demo: .venv/ready
	@$(BIN)/python examples/demo.py --runner $(RUNNER)

test: .venv/ready
	@$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal $(ARGS)

soak: .venv/ready
	@$(BIN)/python -m pytest tests/soak tests/faults tests/control_plane/test_model.py -m soak -s $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .demo
