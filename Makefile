# Sets up, tests and packages mmefficientmod; `make` lists the targets.
#
# STACK=openmmlab   OpenMMLab's original distributions with mmcv-lite; nothing is compiled
# STACK=compiled    the same with MMCV's operators, which are compiled, to compare with
# STACK=onedl       the maintained continuation of the MM libraries, whose MMCV is compiled
# STACK=core        MMEngine alone
# STACK=oldest      the oldest versions that are supported: Python 3.8, torch 2.1; nothing is compiled
STACK ?= openmmlab
TESTS ?=
MARKS ?=
PYTEST_ARGS ?=
WORKERS ?=
DEVICE ?= cpu
BENCH_ARGS ?=
PYTHON ?=
export PYTHON

STACKS := openmmlab compiled onedl core oldest
ifeq ($(filter $(STACK),$(STACKS)),)
$(error unknown STACK '$(STACK)'; choose one of $(STACKS))
endif
ifeq ($(STACK),oldest)
# what a user of the backbone needs; the other backbones are for the newer environments
POSSIBLE := not compiled and not export
LEFT_OUT := --ignore=tests/models/test_baselines.py
endif
ifeq ($(STACK),core)
# the network, its checkpoints and the rules of the house
POSSIBLE := not libraries and not ops and not compiled
TESTS := $(or $(TESTS),tests/models tests/demo/test_scenes.py tests/checkpoints tests/test_architecture.py tests/test_contributing.py)
endif
# Tests of one group (a file, the comparison) share what the first one made. A process that dies fails the run at once: with another one in its place,
# pytest-xdist may wait for ever. A test that takes a quarter of an hour hangs, and ends its process (from pytest 9 on).
PARALLEL := $(if $(WORKERS),-n $(WORKERS) --dist loadgroup --max-worker-restart 0 \
	-o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true)
VENV := .venv/$(STACK)
CHOICE := $(if $(POSSIBLE),$(if $(MARKS),$(POSSIBLE) and ($(MARKS)),$(POSSIBLE)),$(MARKS))

.PHONY: help env demo bench test test-core gpu lint docs package clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18
	@sed -n 's/^# \(STACK=.*\)/  \1/p' $(MAKEFILE_LIST)

env:  ## create the virtual environment .venv/$STACK (once)
	@tools/setup_env.sh $(STACK)

demo: env  ## train and evaluate both tasks on a small generated data set, on the CPU
	$(VENV)/bin/python demo/run.py

bench: env  ## measure EfficientMod's speed against the reference, on the CPU; BENCH_ARGS='--modes all ...' in place of the default
	$(VENV)/bin/python tools/benchmark.py $(or $(BENCH_ARGS),--backbones efficientmod --parts backbone --modes all --sizes 512x512)

test: env  ## run the tests; TESTS=tests/test_x.py or MARKS='not slow' chooses, WORKERS=2 takes two files at a time, DEVICE=cuda runs on a GPU, PYTEST_ARGS='-x -k name' goes to pytest
	$(VENV)/bin/python -m pytest $(if $(CHOICE),-m '$(CHOICE)') $(LEFT_OUT) $(PARALLEL) --device $(DEVICE) $(PYTEST_ARGS) $(TESTS)

test-core:  ## run the tests that need torch and MMEngine alone, minutes from a fresh clone; nothing is compiled
	@$(MAKE) test STACK=core

gpu: env  ## test and time the network on one GPU, in at most ten minutes; writes work_dirs/gpu/gpu.json and gpu.md
	@$(VENV)/bin/python tests/gpu.py

lint: .venv/lint/complete  ## check style, types, imports and English; needs only ruff, mypy and import-linter, not the environment
	.venv/lint/bin/ruff check .
	.venv/lint/bin/ruff format --check .
	.venv/lint/bin/mypy
	PYTHONPATH=. .venv/lint/bin/lint-imports --no-logo
	.venv/lint/bin/python docs/check_english.py

.venv/lint/complete: requirements/tests.txt
	@$(or $(PYTHON),python3) -m venv .venv/lint
	@.venv/lint/bin/pip install --quiet --disable-pip-version-check $$(sed -nE 's/^((ruff|mypy|import-linter)==[^ ;]+).*/\1/p' $<)
	@touch $@

docs: .venv/docs/complete  ## build the documentation as a site into build/site; needs none of the environment
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict  # the note that Material is kept until May 2027
	@echo 'build/site/index.html'

.venv/docs/complete: requirements/docs.txt
	@$(or $(PYTHON),python3) -m venv .venv/docs
	@.venv/docs/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

package: env  ## build the sdist and the wheel into dist/
	$(VENV)/bin/python -m build --no-isolation

clean:  ## remove what the other targets made, except compiled wheels in the cache
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache work_dirs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
