# make demo   sets everything up and runs the main job
# make test   sets everything up and runs the tests
# make sanitize   builds the kernels with sanitizers and calls them with every option
# PYTHON=python3.12 picks another Python; each has a virtual environment of its own.

PYTHON ?= python3
VENV   := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN    := $(VENV)/bin

# An editable install knows the files there were when it was made: a new one, or changed C++, makes it anew.
SOURCES := pyproject.toml CMakeLists.txt $(shell find kernels -name '*.cc' -o -name '*.h')
FILES   := $(shell find jaxnet kernels -name '*.py' | sort | cksum | cut -d' ' -f1)

# pytest looks for asserts to rewrite in each module of a plug-in, and warns of the one by which an editable
# install is found, which Python has imported before: where warnings are errors, no test would start.
define HIDE_FROM_PYTEST
import pathlib, sysconfig
for path in pathlib.Path(sysconfig.get_path("purelib")).glob("_*jaxnet*.py"):
    path.write_text('"""PYTEST_DONT_REWRITE"""\n' + path.read_text())
endef
export HIDE_FROM_PYTEST

.PHONY: demo test setup lint sanitize clean
demo: setup
	$(BIN)/python experiments/feedforward_digits.py

test: setup
	$(BIN)/python -m pytest

setup: $(VENV)/installed-$(FILES)

$(VENV)/installed-$(FILES): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: jaxnet needs Python 3.11 or newer; $(PYTHON) is' "$$($(PYTHON) -V). Name another: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV): some minutes the first time, in which the kernels are compiled"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -c "$$HIDE_FROM_PYTEST"
	@rm -f $(VENV)/installed-*
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The program that calls the kernels as XLA does, in tests/kernels/sanitize.
sanitize: setup
	@command -v cmake >/dev/null || { echo "no CMake: the sanitizers are skipped"; exit 0; }; \
	  include=$$($(BIN)/python -c 'import jax; print(jax.ffi.include_dir())') && \
	  cmake -S tests/kernels/sanitize -B build/sanitize -DXLA_INCLUDE="$$include" >/dev/null && \
	  cmake --build build/sanitize --target check --parallel $$(getconf _NPROCESSORS_ONLN)

clean:
	rm -rf .venv .venv-* build dist
