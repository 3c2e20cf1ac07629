"""Real training, resuming and testing by `mim`, as users of MMDetection and MMSegmentation type it.

By our own tools where MMCV has neither compiled operators nor the file that `--install` writes for such programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import mmcv.ops
import pytest

from helpers import LOADERS, REPO
from scenes import make_dataset

TASKS = {
    'detection': dict(
        package=('mmdet', 'onedl-mmdetection'),
        config='demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py',
        options=['model.backbone.init_cfg=None', 'train_dataloader.batch_size=1', 'train_cfg.val_interval=1'],
        short='train_cfg.max_epochs=1',
        long='train_cfg.max_epochs=2',
        checkpoints=('epoch_1.pth', 'epoch_2.pth'),
        resumed='resumed epoch: 1, iter: 2',
        metrics={'coco/bbox_mAP', 'coco/segm_mAP'},
    ),
    'segmentation': dict(
        package=('mmsegmentation', 'onedl-mmsegmentation'),
        config='demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py',
        options=['train_dataloader.batch_size=2', 'default_hooks.checkpoint.interval=2', 'train_cfg.val_interval=2'],
        short='train_cfg.max_iters=2',
        long='train_cfg.max_iters=4',
        checkpoints=('iter_2.pth', 'iter_4.pth'),
        resumed='resumed epoch: 0, iter: 2',
        metrics={'mIoU', 'mAcc', 'aAcc'},
    ),
}


def mim(command: str, package: tuple[str, str], *args: str, root: Path) -> str:
    """Runs mim with the name that the installed distribution goes by; our own tool on mmcv-lite."""
    original, continuation = package
    try:
        name = distribution(continuation).metadata['Name']
    except PackageNotFoundError:
        name = original
    environment = dict(os.environ, DEMO_ROOT=str(root), PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    tool = [str(Path(sys.executable).parent / 'mim'), command, name]
    if not hasattr(mmcv.ops.info.ext_module, '__file__'):  # mim imports the MM library before this package
        tool = [sys.executable, str(REPO / f'tools/{command}.py')]
        args = [arg for arg in args if arg != '--checkpoint']  # there an operand
    done = subprocess.run(
        [*tool, *args],
        env=environment,
        text=True,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.both_stacks
@pytest.mark.parametrize('task', [pytest.param('detection', marks=pytest.mark.ops), 'segmentation'])
def test_train_stop_resume_test(task, tmp_path):
    task = TASKS[task]
    make_dataset(
        tmp_path / 'data', train_images=2 if 'mask-rcnn' in task['config'] else 4, val_images=2, size=(128, 96)
    )
    config, work_dir = str(REPO / task['config']), tmp_path / 'run'
    options = ['--cfg-options', *LOADERS, *task['options'], 'default_hooks.logger.interval=1']
    first, last = (work_dir / name for name in task['checkpoints'])

    mim('train', task['package'], config, '--work-dir', str(work_dir), *options, task['short'], root=tmp_path)
    assert first.exists() and not last.exists()

    output = mim(
        'train', task['package'], config, '--work-dir', str(work_dir), '--resume', *options, task['long'], root=tmp_path
    )
    assert task['resumed'] in output and last.exists()
    records = [json.loads(line) for file in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in file.open()]
    losses = [(record['step'], record['loss']) for record in records if 'loss' in record]
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert all(0 < loss < 100 for _, loss in losses)

    mim(
        'test',
        task['package'],
        config,
        '--checkpoint',
        str(last),
        '--work-dir',
        str(tmp_path / 'test'),
        *options,
        root=tmp_path,
    )
    (metrics,) = (json.loads(file.read_text()) for file in (tmp_path / 'test').glob('*/*.json'))
    assert task['metrics'] <= metrics.keys()
