# Each target creates .venv if needed, and again only when the lock or pyproject.toml changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN_DIR ?= runs/tiny
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help install demo test gpu stress soak check format docs bench lock

help:
	@echo "make install create .venv (all targets below do so if needed)"
	@echo "make demo    run the preset tiny on real CarRacing in about 5 minutes; RUN_DIR=$(RUN_DIR)"
	@echo "make test    run all tests, or some: T=tests/unit/test_search.py, or any other arguments of pytest"
	@echo "make gpu     test and measure training and dreams on a GPU; needs a CUDA build of torch"
	@echo "make stress  run tests of Ray, processes and storage three times in random order, next to busy processes"
	@echo "make soak    kill real runs at random times for 15 minutes, and compare their results"
	@echo "make check   check lint, format, types and spelling"
	@echo "make format  fix lint and format with ruff"
	@echo "make docs    generate docs/configuration.md from the schema"
	@echo "make bench   measure speed against references"
	@echo "make lock    update the pinned versions in requirements.lock"

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

gpu: $(READY)
	$(BIN)/pytest tests/gpu -m gpu -s -q

stress: $(READY)
	$(BIN)/python -m tests.stress $(STRESS)

soak: $(READY)
	$(BIN)/python -m tests.soak $(SOAK)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m pipeline.config.reference

bench: $(READY)
	$(BIN)/python -m tests.s3_server $(BIN)/world-models bench all --s3 s3://bench/run

# torch keeps its pinned version, without the suffix of a local build: the bare version works on every platform.
lock: $(READY)
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade -P torch==2.13.0 --extra dev --strip-extras --allow-unsafe \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate \
		--output-file requirements.lock pyproject.toml
	sed -i.bak 's/+cpu$$//' requirements.lock && rm requirements.lock.bak
