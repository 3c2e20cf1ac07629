"""A comparison that was killed and started again, and its report: what the tests of this folder look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import ITERS, REPO, ended, load_tool
from scenes import make_dataset

COMPARE = load_tool('compare').main


TOOL = str(REPO / 'tools' / 'compare.py')


@pytest.fixture(scope='session')
def arguments(tmp_path_factory) -> list[str]:
    """A comparison on a few generated scenes. `depth` is an argument of ResNet alone: the other backbone fails."""
    root = tmp_path_factory.mktemp('a folder, with space')
    make_dataset(root / 'data', 4, 2, (96, 80))
    options = f'--iters {ITERS} --size 64 --batch-size 2 --workers 0 --seed 7 --pretrained none'
    return [
        'run',
        'segmentation',
        '--backbones',
        'EfficientMod-xxs',
        'resnet_18',
        '--work-dir',
        str(root / 'work'),
        '--data-root',
        str(root / 'data' / 'ade' / 'ADEChallengeData2016'),
        *options.split(),
        '--cfg-options',
        'model.backbone.depth=18',
    ]


@pytest.fixture(scope='session')
def killed(arguments, start_training) -> dict:
    """The state after everything was killed in the middle of the training."""
    folder = Path(arguments[arguments.index('--work-dir') + 1]) / 'resnet-18'
    process, training = start_training([*arguments, '--backbones', 'resnet-18'], folder)
    process.kill()
    os.killpg(training, signal.SIGKILL)
    process.wait()
    return json.loads((folder / 'state.json').read_text())


@pytest.fixture(scope='session')
def start_training() -> Callable[[list[str], Path], tuple[subprocess.Popen, int]]:
    """Starts a `compare run`; gives its process after its first checkpoint, and the training's process group."""

    def start(arguments: list[str], folder: Path) -> tuple[subprocess.Popen, int]:
        process = subprocess.Popen([sys.executable, TOOL, *arguments], stdout=subprocess.DEVNULL)
        checkpoint = folder / 'train' / 'last_checkpoint'
        deadline = time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert checkpoint.exists() and process.poll() is None, 'the training did not begin'
        return process, int(subprocess.check_output(['pgrep', '-P', str(process.pid)]))

    return start


@pytest.fixture(scope='session')
def work_dir(arguments, killed) -> Path:
    """The work directory after it was started again, with a second backbone."""
    assert ended(COMPARE, *arguments) == 1  # one of the two backbones fails
    return Path(arguments[arguments.index('--work-dir') + 1])


@pytest.fixture(scope='session')
def report(work_dir, tmp_path_factory) -> Path:
    """The report, with latency from a real benchmark."""
    out = tmp_path_factory.mktemp('report')
    options = '--backbones resnet-18 --parts segmentor --sizes 64 512 --repeats 2 --warmup 1 --out'
    load_tool('benchmark').main([*options.split(), str(out)])
    COMPARE(['report', str(work_dir), '--benchmark', str(out / 'benchmark.json'), '--out', str(out)])
    return out
