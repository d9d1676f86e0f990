# make demo   the whole job on one machine         make test   the tests, in a few minutes
# make test-long   those tests that take many seconds each
# make lint   ruff, import-linter, clang-format    make types  mypy, strict
# make bench  pytest-benchmark                     make arm64  the NEON kernels, under qemu
# make bench-e2e  against everything else that one could choose: docs/benchmarks.md (40 minutes)
# make wheel  a wheel of this machine, and one for aarch64: build/dist
# make test-arm64  a device of arm64 under qemu: its wheel, its tests, and a run against an x86 edge
# make sanitize  the tests that reach the core, on one built with AddressSanitizer and UndefinedBehaviorSanitizer
# make fuzz   kernels and messages, FUZZ_SECONDS (60) each
# make docs   the documentation as a site: build/site
# make lowest  the tests that reach every dependency, each at its lower bound in pyproject.toml
#
# Each sets up .venv by itself, with the exact versions of constraints.txt.

PYTHON ?= python3
CXX ?= c++
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:benchmark \
  -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-long lint types bench bench-e2e arm64 wheel test-arm64 sanitize fuzz docs lowest format clean

demo: $(READY)
	$(BIN)/scissionlite demo

# A process per core, and one thread in each: two processes of two threads wait for each other on two
# cores. A process takes up to 1 GB, so there are eight at most. A file's tests stay in one process, since
# they share trained networks and bundles. pytest-benchmark warns beside pytest-xdist; no test needs it.
test: $(READY)
	$(TESTS) -m 'not long'

test-long: $(READY)
	$(TESTS) -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'tests/*.cpp' 'tests/*.h')

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'tests/*.cpp' 'tests/*.h')

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	mkdir -p build/bench
	$(BIN)/python -m pytest bench -o python_files='bench_*.py' --benchmark-json=build/bench/all.json
	$(BIN)/python bench/roofline.py build/bench/all.json build/bench/roofline.png

bench-e2e: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.end_to_end --minutes 38

arm64: $(READY)
	.ci/arm64

wheel: $(READY)
	.ci/wheel $$(uname -m) build/dist
	.ci/wheel aarch64 build/dist

test-arm64: $(READY)
	.ci/test-arm64

sanitize: $(READY)
	.ci/sanitize

fuzz: $(READY)
	.ci/fuzz

# mkdocs.yml says "strict": a warning is an error. The variable silences an advertisement.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lowest:
	PYTHON=$(PYTHON) .ci/lowest

clean:
	rm -rf $(VENV) build

# Built again when the core or the dependencies change; Python sources are used in place.
$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* csrc/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "ScissionLite needs Python 3.10 or newer: apt install python3 (or make PYTHON=/path/to/python3)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing: apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null || { \
	  echo "Python's headers are missing, and the C++ core needs them: apt install python3-dev"; exit 1; }
	@command -v $(CXX) >/dev/null || { \
	  echo "A C++17 compiler is missing: apt install g++ (or make CXX=/path/to/compiler)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt CXX=$(CXX) $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
