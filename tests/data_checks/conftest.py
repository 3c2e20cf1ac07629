"""Generated data for detection and segmentation that a test may damage."""

from __future__ import annotations

import shutil

import pytest

from mmefficientmod.data import coco
from scenes import make_dataset


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """20 training and 8 validation scenes, which show every class."""
    root = tmp_path_factory.mktemp('scenes')
    make_dataset(root / 'data', train_images=20, val_images=8, size=(128, 96))
    return root / 'data'


@pytest.fixture
def root(scenes, tmp_path, monkeypatch):
    """A copy of them, known to the demo's configs."""
    shutil.copytree(scenes, tmp_path / 'data')
    monkeypatch.setenv('DEMO_ROOT', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    coco.forget_annotations()
    return tmp_path / 'data'
