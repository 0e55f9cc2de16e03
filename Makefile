# make run   sets this computer up and runs the scenarios
# make test  sets this computer up and runs the project's own tests
# All may be interrupted and repeated; what is there is not made again.

# Empty: where the verdict comes soonest.
ENVIRONMENT =

.PHONY: help setup run test test-fast lint format docs clean

help:
	@sed -n 's/^# //p' Makefile

setup:
	@.ci/setup

run: setup
	@.venv/bin/smbdirect-testbed run --then-prepare $(ENVIRONMENT)

test:
	@.ci/test

test-fast:
	@.ci/test fast

lint:
	@.ci/test lint

format:
	@.ci/setup dev
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs:
	@.ci/setup dev
	.venv/bin/python -m smbdirect_testbed.cli.reference

clean:
	@.venv/bin/smbdirect-testbed clean
