# Everything runs in .venv, which the first target that needs it creates:
#   make quickstart    about three minutes on the toy environment
#   make ml10          meta-train on Meta-World ML10          make ml10 ARGS="seed=2 total_frames=1_000_000"
#   make benchmark     how fast every stage is here  make benchmark ARGS="parts=[update]"
#   make docs          the documentation as a site, in site/
#   make tables        the result tables of README.md and docs/results/, from the files in results/
#   make test          lint, types, tests                     make test ARGS="-k encoder"
#   make test-portable the tests as on other machines; one alone: make test-narrow, -shuffled, -elsewhere, -busy
# Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
ARGS ?=
JOBS ?= 2
THREADS ?= 1

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := .venv/.installed
# Workers and simulators fill the cores; more threads within each of them only get in each other's way.
PYTEST = OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) $(PY) -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv quickstart ml10 benchmark tables docs lint types pytest test test-slow clean \
	test-portable test-narrow test-shuffled test-elsewhere test-busy

help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

# torch goes first and by its exact pin alone, so that pip takes the build on offer (CPU or CUDA) for that version; the
# rest is then resolved around it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(PIP) install "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -e '.[dev]' -c constraints.txt
	touch $@

quickstart: $(STAMP)
	$(PY) recipes/toy_ppo.py $(ARGS)

ml10: $(STAMP)
	$(PY) recipes/ml10_ppo.py $(ARGS)

benchmark: $(STAMP)
	$(PY) recipes/benchmark.py $(ARGS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)
tables: $(STAMP)
	$(PY) -m results.tables

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)
	$(PY) -m mypy

# With another interpreter that has everything (make pytest PY=python3.12), no .venv is made.
INSTALLED := $(if $(filter .venv/%,$(PY)),$(STAMP))

pytest: $(INSTALLED)
	$(PYTEST) $(ARGS)

test: lint types pytest

# Weights & Biases is too large for everybody's .venv.
test-slow: $(STAMP)
	$(PY) -c 'import wandb' 2>/dev/null || $(PIP) install wandb -c constraints.txt
	$(PYTEST) -m "slow and not gpu" $(ARGS)

# Each must be green wherever `make test` is.
test-portable: test-narrow test-shuffled test-elsewhere test-busy

# A processor without wide vectors: torch, MKL, OpenBLAS and numpy.
test-narrow: $(INSTALLED)
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem \
		NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4" $(PYTEST) $(ARGS)

# More threads, and another order: SEED=7 repeats one.
SEED ?= 1
test-shuffled: THREADS = 2
test-shuffled: $(INSTALLED)
	$(PYTEST) --random-order --random-order-seed=$(SEED) $(ARGS)

# Another user's shell: no home, C locale, a narrow terminal, private files, spaces in the temporary folder.
test-elsewhere: $(INSTALLED)
	folder="$$(mktemp -d)/a folder"; mkdir "$$folder"; umask 077; TMPDIR="$$folder" HOME=/dev/null/home LC_ALL=C \
		COLUMNS=40 NO_COLOR=1 HYDRA_FULL_ERROR=1 MPLBACKEND=svg PYTHONWARNINGS=default $(PYTEST) $(ARGS)

# Beside two loops for each core.
test-busy: $(INSTALLED)
	for loop in $$(seq $$((2 * $$(nproc)))); do sh -c 'while :; do :; done' & loops="$$loops $$!"; done; \
		trap "kill $$loops" EXIT INT TERM; $(PYTEST) $(ARGS)

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
