# Two commands on a fresh Debian or Ubuntu host with root (or sudo), git, make and python3: `make demo`, `make test`.
PYTHON ?= python3
RUN := .venv/bin/
# local machines need root
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || { command -v sudo > /dev/null && echo sudo -E; })

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup:  ## Debian packages and .venv, all that the commands need
	@$(PYTHON) -m core.bootstrap build

ready-for-machines:  # the question mark: without root and sudo go on, tests on the machines then say why they are skipped
	@$(PYTHON) -m core.bootstrap build 'lab?' 'cross?' 'tests?'

demo:  ## two local machines, three commands, one answer
	@$(PYTHON) -m core.bootstrap build lab
	@$(AS_ROOT) $(RUN)invoke demo

clean-demo: setup  ## remove the demo's machines, bridges, routes, rules and units
	@$(AS_ROOT) $(RUN)invoke lab.clean --cluster local

lint: setup  ## ruff and mypy
	$(RUN)ruff check .
	$(RUN)mypy

test: ready-for-machines lint  ## every test, those on two local machines too
	$(AS_ROOT) $(RUN)pytest -m "not long"

test-long: ready-for-machines lint  ## the long runs as well
	$(AS_ROOT) $(RUN)pytest

lock: setup  ## resolve requirements-controller.lock again from pyproject.toml
	$(RUN)uv --no-config pip compile --universal --generate-hashes --python-version 3.11 \
		--default-index https://pypi.org/simple --group build --group test \
		pyproject.toml --output-file requirements-controller.lock --quiet

.PHONY: help setup ready-for-machines demo clean-demo lint test test-long lock
