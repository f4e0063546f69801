# make demo   one good release and three bad ones, on real parts, in private
# make test   every test, on real parts
# make check  ruff, mypy, import-linter, systemd, promtool, shell syntax
# make bench  the figures that the documentation quotes
# make soak MINUTES=30       random faults on real parts under load, as root; MODE=dynamic: weights by Lua
# make crash MODE=dynamic    a kill before and after each effect, as `make test` does it for reload; ten minutes
# make simulate MINUTES=10   random schedules of faults on a virtual clock
# make pairs                 every pair of faults of every story on it, of which `make test` takes a sample; hours
# make fuzz CASES=1000000       hostile inputs for each parser that strangers can reach; half an hour
# make mutants               planted bugs, each of which a test must notice

.PHONY: help setup demo test check bench soak crash simulate pairs fuzz mutants clean
.DEFAULT_GOAL := help

export PATH := $(PATH):/usr/sbin:/sbin
unexport PYTHONDONTWRITEBYTECODE  # else each start of the daemon compiles its sources again
PYTHON := .venv/bin/python
WITH_DOCKER := $(PYTHON) -m examples.playground.engine --
# Each container has a share of the processor of its own, as with systemd, and not one with all others.
WITH_SHARES := $(PYTHON) -m examples.playground.engine $(if $(wildcard /run/systemd/system),,--cgroup-parent=/) --

BENCHES := handover traffic traffic.faults traffic.crowd traffic.life edge_metrics services scale doors \
    footprint recovery intake gates

help:
	@sed -n 's/^# make /make /p' Makefile

setup:
	@.ci/setup.sh

demo: setup
	@$(PYTHON) -m examples.demo

test: setup
ifeq ($(ARGS),)
	@$(PYTHON) -m pytest -n 2 --cov --cov-report= tests/unit
	@$(PYTHON) -m coverage report --fail-under=100
	@$(PYTHON) -m pytest -n 2 --dist worksteal tests/simulation
	@$(WITH_DOCKER) $(PYTHON) -m pytest -n 4 --dist worksteal --ignore tests/unit --ignore tests/simulation
else
	@$(WITH_DOCKER) $(PYTHON) -m pytest -n 3 --dist worksteal $(ARGS)
endif

check: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.ci/check-files.sh

bench:
	@.ci/setup.sh haproxy wrk
	@failed=0; for bench in $(BENCHES); do \
	    $(WITH_SHARES) $(PYTHON) -m bench.$$bench || { echo "bench.$$bench failed"; failed=1; }; \
	done; exit $$failed

soak: setup
	@$(WITH_DOCKER) $(PYTHON) -m tests.soak $(or $(MINUTES),30) $(or $(MODE),reload) $(SEED)

crash: setup
	@$(WITH_DOCKER) $(PYTHON) -m tests.crash $(or $(MODE),dynamic)

simulate: setup
	@$(PYTHON) -m tests.simulation random $(or $(MINUTES),10) $(SEED)

pairs: setup
	@$(PYTHON) -m tests.simulation pairs

fuzz: setup
	@$(PYTHON) -m tests.fuzz $(or $(CASES),1000000) $(SEED)

mutants: setup
	@$(WITH_DOCKER) $(PYTHON) -m tests.mutants

clean:
	rm -rf .venv .cache .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
