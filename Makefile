# Each target sets up what it needs in .venv; nothing is installed outside it.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: run demo test test-clients lint bench docs clean

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

run: $(VENV)/.installed
	$(BIN)/twistd --nodaemon --pidfile= foreman

demo: $(VENV)/.installed
	$(BIN)/python -m foreman.demo

test: $(VENV)/.installed
	$(BIN)/pytest

# Real clients from PyPI and npm against the real daemon; needs Node 18 or newer, and npm.
CLIENTS = foreman/test/clients
test-clients: $(VENV)/.installed $(CLIENTS)/node_modules/.installed .venv-clients/current/.installed .venv-clients/older/.installed
	$(BIN)/pytest -m clients $(CLIENTS)

$(CLIENTS)/node_modules/.installed: $(CLIENTS)/package.json
	@command -v node >/dev/null && command -v npm >/dev/null || \
		{ echo "make test-clients needs Node 18 or newer and npm, to test the JavaScript client too" >&2; exit 1; }
	cd $(CLIENTS) && npm install --no-package-lock --no-audit --no-fund --loglevel=error
	touch $@

.venv-clients/%/.installed: $(CLIENTS)/requirements-%.txt
	$(PYTHON) -m venv .venv-clients/$*
	.venv-clients/$*/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed .venv-bench/.installed
	$(BIN)/python -m benchmarks $(BENCH)

# What `make bench` compares foreman with; where it cannot be installed that part is left out.
.venv-bench/.installed:
	-$(PYTHON) -m venv .venv-bench && .venv-bench/bin/pip install --quiet --disable-pip-version-check \
		uvicorn starlette httpx && echo '*' > .venv-bench/.gitignore && touch $@

# The parts of the documentation that are made from others.
docs: $(VENV)/.installed
	$(BIN)/python docs/reference.py
	$(BIN)/python -m foreman.config > docs/configuration.md

clean:
	rm -rf $(VENV) .venv-bench .venv-clients $(CLIENTS)/node_modules build dist *.egg-info
