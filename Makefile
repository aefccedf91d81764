# make run    the app on the bundled model; it prints the link to its page
# make test   everything: ruff, mypy, pytest with all tiers
# make fast   pytest without the trained model and without a browser
# make lint   ruff and mypy           make format   ruff's formatter
# make advisories   known faults of the installed packages, where the feed (OSV) can be reached
#
# PYTHON=python3.12 picks an interpreter, VENV=folder another environment, ARGS='--port 7861' flags of app.py,
# WORKERS=4 how many processes the tests run in.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

BIN = $(VENV)/bin

.PHONY: run test fast lint format chromium advisories help
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

run: $(VENV)/.installed
	$(BIN)/python app.py $(ARGS)

test: lint chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not browser"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

advisories: $(VENV)/.installed
	@sh .ci/advisories $(VENV)

chromium: $(VENV)/.installed-dev
	@sh .ci/chromium

# The stamps make an installation happen once, and again only when its list of requirements changed. The package
# itself is installed in editable form: the environment then finds `sinkscope` in src/, which links to these files.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@
