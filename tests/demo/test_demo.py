"""The demo from end to end, in its quick form: real data, training, tests and images."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import REPO
from interpreter import run_python

pytestmark = pytest.mark.ops

SCRIPT = str(REPO / 'demo/run.py')


def demo(*options: str) -> subprocess.CompletedProcess:
    return run_python(SCRIPT, '--quick', *options, timeout=600)


def files(root: Path) -> dict[Path, int]:
    """All files but those that every start writes again: the lock and the config that is about to run."""
    made = [path for path in root.rglob('*') if path.is_file() and path.suffix != '.py' and path.name != '.lock']
    return {path: path.stat().st_mtime_ns for path in made}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp('work') / 'demo'
    return root, demo('--work-dir', str(root))


@pytest.mark.both_stacks
def test_quick_demo_ends_with_metrics_and_images(finished):
    root, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    for task in ('segmentation', 'detection'):
        assert f'{task}: training, log in {root / task / "train.log"}' in done.stdout
    for name in ('mIoU', 'mAcc', 'aAcc', 'box AP', 'box AP50', 'mask AP', 'mask AP50'):
        assert f' {name} ' in done.stdout
    for task, key in (('segmentation', 'mIoU'), ('detection', 'coco/segm_mAP_50')):
        (report,) = root.glob(f'{task}/test/*/*.json')
        assert key in json.loads(report.read_text())
    picture = root / 'predictions.png'
    assert str(picture) in done.stdout
    assert min(cv2.imread(str(picture)).shape[:2]) > 500


def test_objects_are_drawn_where_they_are(finished, monkeypatch):
    root, _ = finished
    monkeypatch.setenv('DEMO_ROOT', str(root))
    import run as script  # demo/run.py

    (sample, *_), meta = script.predict(script.DETECTION, root / 'detection/train/epoch_1.pth')
    image = np.zeros((*sample.ori_shape, 3), np.uint8)
    for instances, whole in ((sample.gt_instances, True), (sample.pred_instances, False)):
        assert len(instances)
        drawn = script.draw_objects(image, instances, meta['palette']).any(2)
        assert drawn.shape == tuple(script.ZOOM * length for length in sample.ori_shape)
        masks = instances.masks.masks if whole else instances.masks.numpy()
        covered = masks.any(0).repeat(script.ZOOM, 0).repeat(script.ZOOM, 1)
        assert drawn[covered].mean() > 0.98
    assert not script.draw_objects(image, instances[:0], meta['palette']).any()


@pytest.mark.slow
@pytest.mark.both_stacks
def test_a_second_run_does_nothing_twice_and_goes_on_where_one_stopped(finished):
    root, first = finished
    before = files(root)
    second = demo('--work-dir', str(root))
    assert second.returncode == 0, second.stdout + second.stderr
    assert files(root) == before
    assert second.stdout.count('already') == 6
    table = first.stdout[first.stdout.index('Validation') : first.stdout.index('Images: ')]
    assert table in second.stdout

    # As if it had been stopped during the detector's test.
    shutil.rmtree(root / 'detection/test')
    state = root / 'detection/state.json'
    state.write_text(json.dumps({**json.loads(state.read_text()), 'done': ['train']}))
    third = demo('--work-dir', str(root))
    assert third.returncode == 0, third.stdout + third.stderr
    assert 'detection: testing' in third.stdout
    assert third.stdout.count('already') == 5
    assert len(list(root.glob('segmentation/test/*/*.json'))) == 1


def test_foreign_data_folder_is_refused(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/cat.jpg').write_bytes(b'mine')
    done = demo('--work-dir', str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['cat.jpg']


@pytest.mark.slow
def test_a_failed_step_names_its_log(tmp_path):
    root = tmp_path / 'demo'
    train = root / 'segmentation/train'
    train.mkdir(parents=True)
    foreign = dict(state_dict={'weight': torch.ones(1)}, optimizer={}, meta=dict(epoch=0, iter=1), message_hub={})
    torch.save(foreign, train / 'iter_1.pth')  # of another training, which the demo's cannot go on from
    done = demo('--work-dir', str(root))
    assert done.returncode == 1
    log = root / 'segmentation/train.log'
    assert done.stderr == 'error: Semantic FPN failed, for the reason above\n'
    assert str(log) in done.stdout
    assert 'iter_1.pth' in log.read_text()
