"""Distillation: the loss by hand, a teacher that nothing reaches, refusals, and trainings in one and two processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from torch.testing import assert_close

from helpers import REPO, build_model, end_process, randomised, refused
from interpreter import run_python
from mmefficientmod.checkpoints.reading import read_checkpoint
from mmefficientmod.models import EfficientMod
from mmefficientmod.training.launch import launch
from mmefficientmod.utils import UserError

pytestmark = pytest.mark.libraries

CONFIG = REPO / 'configs/classification/efficientmod-xxs_8xb256_distill_in1k.py'
CLASSES = 3
TINY = dict(
    embed_dims=(8, 8, 8, 16), depths=(1, 1, 1, 1), attn_depths=(0, 0, 0, 0), ratio=2, attn_ratios=(4,) * 4,
    drop_path_rate=0.0,
)  # fmt: skip
TEACHER = dict(
    type='ImageClassifier',
    backbone=dict(type='mmefficientmod.EfficientMod', arch=TINY, out_indices=3),
    neck=dict(type='mmefficientmod.NormPooling', in_channels=16),
    head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=16),
)
TRAINING = f"""
_base_ = '{CONFIG}'
arch = {TINY!r}
classes = dict(metainfo=dict(classes=('red', 'green', 'blue')))
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=pipeline, **classes), **loader)
val_dataloader = test_dataloader = dict(dataset=dict(split='train', pipeline=pipeline, **classes), **loader)
data_preprocessor = dict(num_classes={CLASSES})
val_evaluator = test_evaluator = dict(topk=(1, ))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=1)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
model = dict(
    backbone=dict(arch=dict(arch, _delete_=True)),
    neck=dict(in_channels=16),
    head=dict(num_classes={CLASSES}, in_channels=16, topk=(1, )),
    teacher=dict(_delete_=True, **{TEACHER!r}),
    teacher_checkpoint='teacher.pth',
)
del arch, classes, loader, pipeline
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a teacher's file, a few pictures of three classes and the config of a training."""
    teacher = randomised(build_model(Config(dict(model=TEACHER, default_scope='mmpretrain'))))
    torch.save(dict(state_dict=teacher.state_dict(), meta={}), tmp_path / 'teacher.pth')
    for i, name in enumerate(('red', 'green', 'blue') * 2):
        image = np.random.RandomState(i).randint(0, 128, (64, 64, 3), np.uint8)
        image[..., 2 - i % 3] += 127
        (tmp_path / 'data/train' / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / f'data/train/{name}/{i}.png'), image)
    (tmp_path / 'config.py').write_text(TRAINING)
    monkeypatch.setenv('IMAGENET_ROOT', str(tmp_path / 'data'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_batch(model):
    """Normalised, mixed images with their soft targets, as a training has them."""
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i % CLASSES) for i in range(4)]
    data = dict(inputs=torch.rand(4, 3, 64, 64) * 255, data_samples=samples)
    return model.data_preprocessor(data, training=True)


def student(folder, **options):
    config = Config.fromfile(folder / 'config.py')
    config.model.update(options)
    config.model.data_preprocessor = dict(config.data_preprocessor, type='ClsDataPreprocessor')
    torch.manual_seed(0)
    model = build_model(config)
    model.init_weights()
    return randomised(model).train()


@pytest.mark.both_stacks
@pytest.mark.parametrize(('alpha', 'tau'), [(0.9, 1.0), (0.3, 2.0), (0.0, 1.0)])
def test_loss_is_the_published_one(alpha, tau, folder):
    model = student(folder, alpha=alpha, tau=tau)
    batch = make_batch(model)
    losses = model(**batch, mode='loss')
    with torch.no_grad():
        own, theirs = model(batch['inputs']), model.teacher.model(batch['inputs'])
    mixed = torch.stack([sample.gt_score for sample in batch['data_samples']])
    base = -((mixed * 0.9 + 0.1 / CLASSES) * F.log_softmax(own, -1)).sum(-1).mean()
    p, log_q = F.softmax(theirs / tau, -1), F.log_softmax(own / tau, -1)
    divergence = (p * (p.log() - log_q)).sum(-1).mean() * tau**2
    assert_close(losses['loss_base'], (1 - alpha) * base)
    assert_close(losses['loss_distill'], alpha * divergence)


def test_nothing_reaches_the_teacher(folder):
    model = student(folder)
    teacher = model.teacher.load()
    before = copy.deepcopy(teacher.state_dict())
    assert not any('teacher' in name for name in (*model.state_dict(), *dict(model.named_parameters())))
    assert not any(module.training for module in teacher.modules())
    average = ExponentialMovingAverage(model, momentum=0.5)
    assert average.module.teacher.load() is teacher
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    sum(model(**make_batch(model), mode='loss').values()).backward()
    optimiser.step()
    average.update_parameters(model)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert_close(teacher.state_dict(), before, rtol=0, atol=0)


@pytest.mark.both_stacks
def test_loss_under_autocast_is_single_precision(folder):
    model = student(folder)
    batch = make_batch(model)
    whole = model(**batch, mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        half = model(**batch, mode='loss')
    assert half['loss_distill'].dtype == torch.float32
    assert_close(half['loss_distill'], whole['loss_distill'], rtol=0.1, atol=0.02)


def refused_with(*options):
    return refused(
        partial(launch, 'train'), 'config.py', '--work-dir', 'work', *(('--cfg-options', *options) if options else ())
    )


def test_a_training_that_cannot_work_is_refused_before_the_start(folder):
    assert "the teacher's checkpoint no.pth does not exist" in refused_with('model.teacher_checkpoint=no.pth')
    assert 'the teacher has 5 classes, the student 3' in refused_with('model.teacher.head.num_classes=5')
    torch.save(EfficientMod('xxs').state_dict(), 'other.pth')
    model = student(folder)
    model.teacher = type(model.teacher)(TEACHER, 'other.pth')
    with pytest.raises(UserError, match=r'^the teacher other.pth does not fit ImageClassifier - 72 missing: [^\n]*$'):
        model.init_weights()
    with pytest.raises(ValueError, match=r'alpha must be 0 to 1 and tau above 0, got 2 and 1\.0'):
        student(folder, alpha=2)


def train(folder, *launcher_and_options):
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    if launcher_and_options[0] == '-m':
        command = [sys.executable, *launcher_and_options]
        done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)
    else:
        done = run_python(*launcher_and_options, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def distributed_step(rank, folder, batches):
    """What each of two processes does: a backward pass of MMEngine's data-parallel model on a half of the images."""
    from mmpretrain.structures import DataSample

    os.chdir(folder)
    dist.init_process_group('gloo', init_method=f'file://{folder}/init', rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = MMDistributedDataParallel(student(folder))
    images, scores = batches[rank]
    samples = [DataSample().set_gt_score(score) for score in scores]
    sum(model(images, samples, mode='loss').values()).backward()
    torch.save([parameter.grad for parameter in model.module.parameters()], folder / f'gradients_{rank}.pth')
    end_process()


def test_two_processes_compute_the_gradients_of_one(folder):
    model = student(folder)
    batch = make_batch(model)
    sum(model(**batch, mode='loss').values()).backward()
    scores = torch.stack([sample.gt_score for sample in batch['data_samples']])
    # storage of their own: Python 3.8 passes none twice
    halves = [tuple(part.clone() for part in half) for half in zip(batch['inputs'].chunk(2), scores.chunk(2))]
    torch.multiprocessing.spawn(distributed_step, (folder, halves), nprocs=2)
    own = [parameter.grad for parameter in model.parameters()]
    for rank in range(2):
        assert_close(torch.load(folder / f'gradients_{rank}.pth'), own, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_training_resumed_and_tested_without_the_teacher(folder):
    tool, options = str(REPO / 'tools/train.py'), ['config.py', '--work-dir', 'work']
    log = train(folder, tool, *options)
    assert 'loss_distill' in log and 'accuracy/top1' in log
    first = read_checkpoint(folder / 'work/epoch_1.pth')
    assert not any('teacher' in name for key in ('state_dict', 'ema_state_dict') for name in first[key])
    log = train(folder, tool, *options, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1' in log
    second = read_checkpoint(folder / 'work/epoch_2.pth')['state_dict']
    assert any((second[name] != value).any() for name, value in first['state_dict'].items())
    os.remove(folder / 'teacher.pth')  # a test needs none
    log = train(folder, str(REPO / 'tools/test.py'), 'config.py', 'work/epoch_2.pth', '--work-dir', 'work')
    assert 'accuracy/top1' in log
