# Sets up, tests and packages mmefficientmod; `make` lists the targets.
#
# STACK=openmmlab|onedl   the MM libraries: OpenMMLab's original distributions or their maintained continuation
STACK ?= openmmlab
TESTS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
PYTHON ?=
export PYTHON

ifeq ($(filter $(STACK),openmmlab onedl),)
$(error unknown STACK '$(STACK)'; choose STACK=openmmlab or STACK=onedl)
endif
VENV := .venv/$(STACK)

.PHONY: help env demo bench test lint package clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18
	@echo 'STACK=onedl uses the maintained continuation of the MM libraries instead of the original ones.'

env:  ## create the virtual environment .venv/$STACK (once)
	@tools/setup_env.sh $(STACK)

demo: env  ## train and evaluate both tasks on a small generated data set, on the CPU
	$(VENV)/bin/python demo/run.py

bench: env  ## measure the network's forms against the plain one, on the CPU; BENCH_ARGS='--rows efficientmod-s' goes to the tool
	$(VENV)/bin/python tools/benchmark_forms.py $(BENCH_ARGS)

test: env  ## run the tests; TESTS=tests/test_x.py chooses, PYTEST_ARGS='-x -k name' goes to pytest
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS) $(TESTS)

lint: .venv/lint/bin/ruff  ## check the style; needs ruff alone, not the environment
	.venv/lint/bin/ruff check .
	.venv/lint/bin/ruff format --check .

.venv/lint/bin/ruff: requirements/tests.txt
	@$(or $(PYTHON),python3) -m venv .venv/lint
	@.venv/lint/bin/pip install --quiet --disable-pip-version-check $$(grep '^ruff==' requirements/tests.txt)
	@touch $@

package: env  ## build the sdist and the wheel into dist/
	$(VENV)/bin/python -m build --no-isolation

clean:  ## remove what the other targets made, except compiled wheels in the cache
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache work_dirs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
