# Each target sets up what it needs in .venv; nothing is installed outside it.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: run demo test lint bench clean

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

clean:
	rm -rf $(VENV) .venv-bench build dist *.egg-info
