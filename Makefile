# make demo   one good release and three bad ones, on real parts, in private
# make test   every test, on real parts
# make check  ruff, mypy, import-linter, systemd, promtool, shell syntax
# make bench  the figures that the documentation quotes

.PHONY: help setup demo test check bench clean
.DEFAULT_GOAL := help

export PATH := $(PATH):/usr/sbin:/sbin
PYTHON := .venv/bin/python
WITH_DOCKER := $(PYTHON) -m examples.playground.engine --

help:
	@sed -n 's/^# make /make /p' Makefile

setup:
	@.ci/setup.sh

demo: setup
	@$(PYTHON) -m examples.demo

test: setup
	@$(WITH_DOCKER) $(PYTHON) -m pytest -n 2 --dist worksteal --cov --cov-report= $(ARGS)
	@$(PYTHON) -m coverage report --fail-under=100

check: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.ci/check-files.sh

bench: setup
	@$(WITH_DOCKER) $(PYTHON) -m bench.handover
	@$(WITH_DOCKER) $(PYTHON) -m bench.footprint

clean:
	rm -rf .venv .cache .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
