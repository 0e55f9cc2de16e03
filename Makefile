# make run   sets this computer up and runs the scenarios in the environment rxe
# make test  sets this computer up and runs the project's own tests
# Both may be interrupted and repeated; what is there is not made again.

ENVIRONMENT = rxe

.PHONY: help setup run test test-fast lint format clean

help:
	@sed -n 's/^# //p' Makefile

setup:
	@.ci/setup

run: setup
	@.venv/bin/smbdirect-testbed run $(ENVIRONMENT)

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

clean:
	@.venv/bin/smbdirect-testbed clean
