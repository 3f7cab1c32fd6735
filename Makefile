# Each target sets up .venv by itself, once: again only when the lock or pyproject.toml changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN_DIR ?= runs/tiny
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help install demo test stress soak check format docs bench lock

help:
	@echo "make install set up .venv, as all that follow do where need be"
	@echo "make demo    the whole pipeline on real CarRacing, tiny, in about 5 minutes; RUN_DIR=$(RUN_DIR)"
	@echo "make test    all tests; T=tests/unit/test_search.py, or anything else that pytest takes, for some of them"
	@echo "make stress  tests of Ray, processes and storage three times in random order, beside busy processes"
	@echo "make soak    kill real runs at random times for a quarter of an hour, and compare what they come to"
	@echo "make check   ruff, format, types"
	@echo "make format  let ruff put the format right"
	@echo "make docs    generate docs/configuration.md from the schema"
	@echo "make bench   measure speed against references"
	@echo "make lock    resolve the pins anew"

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(READY)

demo: $(READY)
	$(BIN)/world-models run tiny --run-dir $(RUN_DIR)

test: $(READY)
	$(BIN)/pytest $(if $(T),$(T),-n 3 --dist loadfile --no-loadscope-reorder)

stress: $(READY)
	$(BIN)/python -m tests.stress $(STRESS)

soak: $(READY)
	$(BIN)/python -m tests.soak $(SOAK)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m pipeline.config.reference

bench: $(READY)
	$(BIN)/world-models bench all

# torch stays where it is pinned, and without the suffix of a local build: the bare version serves every platform.
lock: $(READY)
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade -P torch==2.13.0 --extra dev --strip-extras --allow-unsafe \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate \
		--output-file requirements.lock pyproject.toml
	sed -i.bak 's/+cpu$$//' requirements.lock && rm requirements.lock.bak
