# make run   sets this computer up and runs the scenarios
# make test  sets this computer up and runs the project's own tests
# make uml   builds User Mode Linux once, in which make run takes half the time
# All may be interrupted and repeated; what is there is not made again.

# Empty: the one with the soonest verdict.
ENVIRONMENT =

.PHONY: help setup run uml test test-fast lint format clean

help:
	@sed -n 's/^# //p' Makefile

setup:
	@.ci/setup

run: setup
	@.venv/bin/smbdirect-testbed run $(ENVIRONMENT)

uml: setup
	@.venv/bin/smbdirect-testbed prepare uml-rxe

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
