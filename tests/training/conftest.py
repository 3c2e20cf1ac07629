"""The trainings that several tests resume."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import pytest

from scenes import make_dataset
from trainings import Training


@pytest.fixture(scope='session')
def training(tmp_path_factory):
    """(task, workers) -> a training, and the work directory in which it was not stopped."""
    root = tmp_path_factory.mktemp('resume')
    make_dataset(root / 'data', train_images=6, val_images=3, size=(128, 96))

    @lru_cache(maxsize=None)
    def make(task: str, workers: int) -> tuple[Training, Path]:
        made = Training(root, task, workers)
        code, output = made.run(root / f'{task}-{workers}')
        assert code == 0, output[-3000:]
        return made, root / f'{task}-{workers}'

    yield make
    shutil.rmtree(root)
