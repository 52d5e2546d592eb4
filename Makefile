# Two commands matter: `make demo` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
MINUTES ?= 1
TARGET ?= all

.PHONY: demo test bench fuzz lint proto clean help

help:
	@echo "make demo   daemons on a private chain: a channel's life, a network that loses a node, a cheat punished"
	@echo "make test   the whole test suite"
	@echo "make bench  speed and memory, beside the crypto floor of this machine"
	@echo "make fuzz   look for inputs that break a decoder: MINUTES=1 for each, TARGET=all"
	@echo "make lint   ruff, mypy --strict, import-linter"
	@echo "make proto  generate the gRPC stubs again, after a change in proto/"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@# compat: type checkers of other projects find the packages
	@$(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat -e '.[dev]'
	@$(BIN)/python -m compileall -q channeld wallet watchtower tests
	@touch $(READY)

fuzz: $(READY)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat -e '.[fuzz]'
	@$(BIN)/python -m tests.fuzz $(TARGET) --minutes $(MINUTES)

demo: $(READY)
	@$(BIN)/python -m channeld.lab.demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -q

bench: $(READY)
	@$(BIN)/python -m tests.bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: $(READY)
	$(BIN)/python scripts/gen_proto.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
