"""Trainings of a classifier on the device of the tests: exact resuming, mixed precision, DDP and FSDP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import REPO, classifier_config
from interpreter import run_python
from mmefficientmod.checkpoints.reading import read_checkpoint
from mmefficientmod.training.cpu import SHARDS_ON_CPU

pytestmark = [pytest.mark.slow, pytest.mark.libraries]
DETERMINISTIC = ('randomness.seed=7', 'randomness.deterministic=True')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Eight images in two classes."""
    root = tmp_path_factory.mktemp('images')
    for i in range(8):
        image = np.random.RandomState(i).randint(0, 128, (64, 64, 3)) + 127 * (i % 2)
        (root / 'ab'[i % 2]).mkdir(exist_ok=True)
        cv2.imwrite(str(root / 'ab'[i % 2] / f'{i}.png'), image.astype(np.uint8))
    yield root
    shutil.rmtree(root)


def train(root: Path, device: torch.device, work_dir: Path, *options: str, flags: tuple = (), **settings) -> dict:
    """The last checkpoint of four iterations on the device; with the launcher of torch, as its only process."""
    config = classifier_config(root=root)
    config.merge_from_dict(settings)
    work_dir.mkdir(exist_ok=True)
    config.dump(work_dir / 'config.py')
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '1']
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    options = (f'env_cfg.dist_cfg.backend={backend}', *options)
    options = (
        REPO / 'tools/train.py',
        work_dir / 'config.py',
        '--work-dir',
        work_dir,
        *flags,
        '--cfg-options',
        *options,
    )
    environment = dict(os.environ, PYTHONPATH=str(REPO), CUBLAS_WORKSPACE_CONFIG=':4096:8')  # for a GPU's products
    if device.type == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    if '--launcher' in flags:
        command = map(str, (*start, *options))
        done = subprocess.run([*command], env=environment, capture_output=True, text=True, timeout=600)
    else:
        done = run_python(*options, env=environment, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return read_checkpoint(str(work_dir / (work_dir / 'last_checkpoint').read_text().rpartition('/')[2]))


def test_resumed_exactly(root, device, tmp_path):
    whole = train(root, device, tmp_path / 'whole', *DETERMINISTIC)
    assert whole['meta']['iter'] == 4
    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole/epoch_1.pth', tmp_path / 'resumed')
    resumed = train(root, device, tmp_path / 'resumed', *DETERMINISTIC, flags=('--resume',))
    assert all(torch.equal(value, resumed['state_dict'][name]) for name, value in whole['state_dict'].items())


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mixed_precision(dtype, root, device, tmp_path):
    if device.type == 'cpu':
        pytest.skip('MMEngine trains in mixed precision on a GPU only')
    weights = train(root, device, tmp_path, f'optim_wrapper.dtype={dtype}', flags=('--amp',))['state_dict']
    assert all(value.isfinite().all() and value.dtype != torch.float16 for value in weights.values())


def test_ddp_of_one_process_is_a_plain_training(root, device, tmp_path):
    plain = train(root, device, tmp_path / 'plain', *DETERMINISTIC)['state_dict']
    ddp = train(root, device, tmp_path / 'ddp', *DETERMINISTIC, flags=('--launcher', 'pytorch'))['state_dict']
    assert plain.keys() == ddp.keys()
    assert all(torch.equal(value, ddp[name]) for name, value in plain.items())


def test_fsdp_of_one_process(root, device, tmp_path):
    """One whole checkpoint, with the names and shapes of a plain training."""
    if device.type == 'cpu' and not SHARDS_ON_CPU:
        pytest.skip('this torch refuses it on a CPU')
    plain = train(root, device, tmp_path / 'plain')['state_dict']
    settings = dict(runner_type='FlexibleRunner', strategy=dict(type='mmefficientmod.FSDPStrategy'))
    sharded = train(root, device, tmp_path / 'fsdp', flags=('--launcher', 'pytorch'), **settings)['state_dict']
    assert {name: value.shape for name, value in sharded.items()} == {n: value.shape for n, value in plain.items()}
    assert all(value.isfinite().all() for value in sharded.values())
