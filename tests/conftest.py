"""The golden weights and tensors as a fixture; what tests share besides is in ``helpers.py``."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import zlib
from collections import OrderedDict
from typing import Iterator

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin

import mmefficientmod  # noqa: F401  (MMCV's operators, where MMCV has no compiled ones)
from helpers import DATA
from mmefficientmod.export import environment

# The groups that take longest begin first, so that no process waits for another one at the end.
LONG = (
    'compare/compare',
    'export/export',
    'predict/predict',
    'demo/test_demo.py',
    'training/training',
    'export/test_predictions.py',
    'codebases/test_mm_tools.py',
    'docs/test_commands.py',
    'tests/test_packaging.py',
)
SHARED = 'work_dir', 'training', 'exported'  # fixtures of several files, which take long


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--device', default='cpu', help='cuda runs the tests that take the fixture `device` on a GPU')


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption('--device')
    if device not in ('cpu', 'cuda'):
        raise pytest.UsageError(f'--device takes cpu or cuda, not {device}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise pytest.UsageError('--device cuda needs a GPU that torch can use, and there is none: leave it out')
    if config.getoption('dist', 'no') == 'loadgroup' and not hasattr(pytest.Item, '_nodeid'):  # pytest-xdist writes it
        raise pytest.UsageError('pytest-xdist does not group the tests of this pytest: see requirements/tests.txt')
    config.option.loadscopereorder = False  # pytest-xdist begins with the groups of many tests, not with the long ones


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU, leaves out the tests that take no device.

    Tests that share what a fixture made stay in one process of pytest-xdist: those of a file, of the comparison, and of
    the trainings that are resumed.
    """
    if config.getoption('--device') == 'cuda':
        others = [item for item in items if 'device' not in getattr(item, 'fixturenames', ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for item in items:
        folder = item.path.parent
        shared = folder.name if {*SHARED} & {*getattr(item, 'fixturenames', ())} else item.path.name
        item.add_marker(pytest.mark.xdist_group(f'{folder.name}/{shared}'))
    items.sort(key=lambda item: LONG.index(_group(item)) if _group(item) in LONG else len(LONG))


def _group(item: pytest.Item) -> str:
    return next(item.iter_markers('xdist_group')).args[0]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Reports a test under its own name, without the group that pytest-xdist appends: --last-failed looks for it."""
    if hasattr(report, 'node'):  # it comes from another process
        report.nodeid = re.sub(r'@[\w-]+/[\w.-]+$', '', report.nodeid)


def _managers(cls: type = ManagerMixin) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _managers(subclass)


@pytest.fixture(autouse=True, scope='module')
def libraries_frozen():
    """MMEngine collects garbage for each data set that it builds: here it passes over what the imports brought."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='module')
def nothing_kept_by_name():
    """What fixtures of a file, or of several, left in MMEngine by name, such as its scope, is gone for the next."""
    yield
    for cls in _managers():
        cls._instance_dict = OrderedDict()


@pytest.fixture(autouse=True, scope='session')
def short_timings():
    """An export measures each of its forms for a moment; no test looks at how long they take."""
    before, environment.LATENCY_SECONDS = environment.LATENCY_SECONDS, 0.1
    yield
    environment.LATENCY_SECONDS = before


@pytest.fixture(autouse=True)
def process_as_before():
    """What a test leaves in its process changes nothing for the next one.

    That is what MMEngine keeps by name (scope, visualizer, logger), the environment and the working directory.
    """
    before = {cls: cls._instance_dict.copy() for cls in _managers()}
    environment, folder = dict(os.environ), os.getcwd()
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for cls in _managers():
        cls._instance_dict = before.get(cls, OrderedDict())


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the network runs: a CPU, or a GPU in plain float32, without TensorFloat-32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(request.config.getoption('--device'))
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def messages():
    """() -> the warnings in MMEngine's log so far, or with ``level`` all of that level."""
    logger, records = MMLogger.get_instance('messages'), []  # the current one; an earlier one may have another level
    keep = logging.Handler()
    keep.emit = records.append
    logger.addHandler(keep)
    yield lambda level=logging.WARNING: [record.getMessage() for record in records if record.levelno == level]
    logger.removeHandler(keep)


def _golden_value(name: str, shape: list) -> torch.Tensor:
    a = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('gamma_1'):
        a = 0.5 + 0.1 * a
    elif name.endswith('bias'):
        a = 0.1 * a
    elif len(shape) == 1:
        a = 1 + 0.1 * a
    else:
        a = a / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(a.astype(np.float32))


@pytest.fixture(scope='session')
def golden():
    """arch -> (released weights with classifier, stored facts, stored tensors)."""
    cache = {}

    def load(arch: str) -> tuple[dict, dict, dict]:
        if arch not in cache:
            facts = json.loads((DATA / f'golden/efficientmod_{arch}.json').read_text())
            weights = {name: _golden_value(name, shape) for name, shape in facts['parameters'].items()}
            cache[arch] = weights, facts, dict(np.load(DATA / f'golden/efficientmod_{arch}.npz'))
        return cache[arch]

    return load
