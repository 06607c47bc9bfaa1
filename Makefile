# Each target sets up what it needs in .venv; nothing is installed outside it.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: run demo test test-clients test-deploy test-firewall site lint audit requirements bench bench-report chaos chaos-short chaos-report soak docs clean

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

run: $(VENV)/.installed
	$(BIN)/twistd --nodaemon --pidfile= foreman

demo: $(VENV)/.installed
	$(BIN)/python -m foreman.demo

# In a few processes: most of it waits, for sockets, disks and other processes.
test: $(VENV)/.installed
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

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

# What deploy/ and the Dockerfile hold, judged by the tools of those who read such files: some from PyPI, others Debian's.
DEBIAN = age curl original-awk prometheus shellcheck skopeo systemd
FIREWALL = deploy/test/test_target_firewall.py
test-deploy: $(VENV)/.installed .venv-deploy/.installed
	@for tool in age curl original-awk promtool shellcheck skopeo systemd-analyze; do command -v $$tool >/dev/null || \
		{ echo "make test-deploy needs $$tool; Debian: apt-get install --no-install-recommends $(DEBIAN)" >&2; exit 1; }; done
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --ignore=$(FIREWALL) deploy/test

# The firewall of the target's side, between machines that are network namespaces: as root, or where users may have such.
test-firewall: $(VENV)/.installed
	@for tool in ip nft; do command -v $$tool >/dev/null || \
		{ echo "make test-firewall needs $$tool; Debian: apt-get install --no-install-recommends iproute2 nftables" >&2; exit 1; }; done
	$(BIN)/pytest $(FIREWALL)

# The documentation as pages, in build/site; a link that leads nowhere fails it.
site: .venv-docs/.installed
	.venv-docs/bin/sphinx-build --quiet --fail-on-warning --nitpicky --fresh-env --doctree-dir build/doctrees docs build/site

# The daemon's dependencies, and what builds its wheel: the pins of the container install, and none has a known vulnerability.  That is asked of a
# service on the net; where it does not answer this fails and says so, since then nothing is known.
audit: .venv-audit/.installed
	.venv-audit/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --dry-run --ignore-installed \
		-r requirements/server.txt
	.venv-audit/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes \
		-r requirements/server.txt -r requirements/build.txt

# Pins anew, to what is newest today: what the container installs, and the packages of `make test-clients`.
COMPILE = .venv-audit/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--custom-compile-command 'make requirements' --output-file
requirements: .venv-audit/.installed
	$(COMPILE) requirements/server.txt --generate-hashes --extra server setup.cfg
	echo 'setuptools >= 77' | $(COMPILE) requirements/build.txt --generate-hashes -
	$(COMPILE) $(CLIENTS)/requirements-current.txt $(CLIENTS)/requirements-current.in
	$(COMPILE) $(CLIENTS)/requirements-older.txt $(CLIENTS)/requirements-older.in

# Measures (BENCH="--quick scale …" for some, roughly) into benchmarks/results.json; `make bench-report` makes the page of it.
bench: $(VENV)/.installed .venv-bench/.installed .venv-bench-litellm/.installed
	$(BIN)/python -m benchmarks $(BENCH)

bench-report: $(VENV)/.installed .venv-bench/.installed
	$(BIN)/python -m benchmarks.report

# What `make bench` compares foreman with, what draws, what judges deploy/ …; of the benchmarks, what cannot be installed is left out.
.venv-%/.installed: requirements/%.txt
	-$(PYTHON) -m venv .venv-$* && .venv-$*/bin/pip install --quiet --disable-pip-version-check -r $< && \
		echo '*' > .venv-$*/.gitignore && touch $@

# Load and faults for five minutes, and a judge (CHAOS="--seconds 3600" for longer); `make chaos-report` makes the page of it.
chaos: $(VENV)/.installed
	$(BIN)/python -m chaos --record $(CHAOS)

chaos-report: $(VENV)/.installed .venv-bench/.installed
	$(BIN)/python -m chaos --report

# An hour of load and few faults on one database (SOAK="--length 600" for less): nothing lost, and nothing that grows.
soak: $(VENV)/.installed .venv-bench/.installed
	$(BIN)/python -m chaos.soak $(SOAK)

# The same in a minute: a seed that once found something (chaos/seeds.txt), and one of everything.
SHORT = --rounds 1 --length 8 --rate 12 --pause 1.2
chaos-short: $(VENV)/.installed
	$(BIN)/python -m chaos $(SHORT) --seed 226
	$(BIN)/python -m chaos $(SHORT) --seed 228

# The parts of the documentation that are made from others.
docs: $(VENV)/.installed
	$(BIN)/python docs/reference.py
	$(BIN)/python -m foreman.config > docs/configuration.md

clean:
	rm -rf $(VENV) .venv-* $(CLIENTS)/node_modules build dist *.egg-info
