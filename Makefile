# Two commands do everything: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made

.PHONY: setup demo test test-fast bench check format docs dist clean

# Compiling all that is installed takes 70 processor seconds; the imports compile what every process of a run needs, in 12.
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard kernels/lora_kernels/native/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two the first time) …"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]' 2>&1 | grep -v "is ignored: it is neither" || true
	@$(BIN)/python -c 'import lora_reg, lora_registry.worker.main, lora_kernels, pytest, torch, transformers'
	@touch $(STAMP)

demo: setup
	@$(BIN)/python examples/demo.py

# Three processes more than there are cores, for some tests wait for kills and leases. tests/support/order.py says which
# tests run in one process, and which begin.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(( $$(nproc) + 3 ))

test: setup
	$(PYTEST) --durations=20

# The loop while writing code. It covers the contract; the client's command line and transfers against the service in a
# thread, over SQLite and a folder; the routes and services of the registry in the same way; the blob store of a folder;
# and the kernels, with random models. Not covered: jobs and workers, PostgreSQL and S3, processes that are killed, Hub
# clients, trained models, compiled and interpreted Triton kernels, the README, the examples (tests/support/order.py).
FAST := $(addprefix tests/,contract client registry kernels)

test-fast: setup
	$(PYTEST) --fast $(FAST)

# SUITE=merge, compose, sparse7b, drift, gpu or all. RUNS=1 is a trial that writes nothing. Needs 30 GB of disk and an idle machine.
SUITE ?= all
RUNS ?= 5
bench: setup
	PYTHONPATH=kernels:client:. $(BIN)/python -m benchmarks $(SUITE) --runs $(RUNS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The reference pages under docs/reference, written from the code.
docs: setup
	PYTHONPATH=.:client:registry:kernels $(BIN)/python -m docs.generate

# A wheel and an sdist in dist/. The wheel is built from the sdist, which proves that the sdist is complete.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) .cache dist
