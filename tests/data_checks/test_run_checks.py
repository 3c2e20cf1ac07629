"""Checks of data in trainings: before the first iteration, remembered, and without a trace in the training itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from damaged_data import DETECTION, SEGMENTATION, change_objects, load
from helpers import REPO
from interpreter import run_python
from mmefficientmod.training.checks.data import MEMORY, WatchedLoaders
from mmefficientmod.training.checks.loaders import check_single_images, fit_workers
from mmefficientmod.training.checks.schedule import check_best, find_misfits
from mmefficientmod.training.checks.settings import check_settings
from mmefficientmod.training.launch import launch
from mmefficientmod.utils import UserError

SHORT = [
    'model.backbone.init_cfg=None',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'train_dataloader.batch_size=2',
    'randomness.seed=1',
]


def train(root, *options: str, flags: tuple = ()) -> subprocess.CompletedProcess:
    """``tools/train.py`` of the demo's segmentor for two iterations, without workers."""
    command = [REPO / 'tools/train.py', SEGMENTATION, '--work-dir', root / 'run', *flags]
    return run_python(*command, '--cfg-options', *SHORT, *options, env=dict(os.environ, PYTHONPATH=str(REPO)))


def losses(root) -> list:
    path = max((root / 'run').glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: line[key] for key in line if 'loss' in key or key == 'mIoU'} for line in lines]


@pytest.mark.slow
def test_a_training_is_the_same_with_and_without_the_checks(root):
    """Without workers, so that the pipelines draw from the numbers that the training draws from, too."""
    done = train(root, 'default_hooks.logger.interval=1')
    assert done.returncode == 0, done.stderr[-3000:]
    first = losses(root)
    assert len(first) == 3 and first[0]['loss'] > 0
    remembered = json.loads((root / 'run' / MEMORY).read_text())
    assert list(remembered.values()) == [[], []]  # one for each data set, without findings
    shutil.rmtree(root / 'run')
    done = train(root, 'default_hooks.logger.interval=1', flags=('--no-data-checks',))
    assert done.returncode == 0 and losses(root) == first
    assert not (root / 'run' / MEMORY).exists()


def test_an_error_ends_the_run_before_the_first_iteration(root):
    for path in (root / 'ade/ADEChallengeData2016/annotations/validation').iterdir():
        path.write_bytes(b'')
    done = train(root)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r'error: val_dataloader\.dataset: 8 of 8 labels cannot be read', last), last
    assert not list((root / 'run').glob('*.pth'))


def build(root) -> list[str]:
    """What a runner logs about the training data while it builds their loader."""
    config = load(SEGMENTATION, train_dataloader__num_workers=0, train_dataloader__persistent_workers=False)
    runner = Runner(
        model=nn.Linear(1, 1),
        work_dir=str(root / 'run'),
        train_dataloader=config.train_dataloader,
        train_cfg=config.train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_scope='mmseg',
        experiment_name=f'run{len(list((root / "run").glob("*")))}',
    )
    said: list[str] = []
    watched = WatchedLoaders(runner, config, ('train',))
    watched.say = said.append
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner.build_dataloader(runner._train_dataloader)
    return said


def test_findings_are_remembered_until_files_change(root):
    path = root / 'ade/ADEChallengeData2016/images/training/ADE_train_00000001.jpg'
    path.rename(path.with_suffix('.jpeg'))
    first = build(root)
    assert first[0].startswith('train_dataloader.dataset: 1 of 20 images in')
    memory = root / 'run' / MEMORY
    memory.write_text(memory.read_text().replace('1 of 20 images', '1 of 20 files'))
    assert build(root)[0].startswith('train_dataloader.dataset: 1 of 20 files in')  # said again from the file
    path.with_suffix('.jpeg').rename(path)
    assert not build(root)
    assert len(json.loads(memory.read_text())) == 2
    memory.write_text('damaged')
    assert not build(root)


@pytest.mark.ops
def test_a_damaged_file_is_refused_by_the_launcher(root):
    change_objects(root, lambda each: each.update(area=0), ('train',))
    options = ['--cfg-options', 'model.backbone.init_cfg=None', 'train_dataloader.num_workers=0']
    with pytest.raises(SystemExit) as end:
        launch('train', [str(DETECTION), '--work-dir', str(root / 'run'), *options])
    message = str(end.value.code)
    assert re.match(r'error: train_dataloader\.dataset: (\d+) of \1 objects .* are dropped', message), message
    assert '\n' not in message


# The classes of a checkpoint ------------------------------------------------------------------------------------------


def compare_checkpoint(root, classes, part: str = 'test', **options) -> list[str]:
    """What is found where the checkpoint notes other classes than the six of the scenes."""
    path = str(root / 'epoch_1.pth')
    torch.save(dict(meta=dict(dataset_meta=dict(classes=classes)), state_dict={}), path)
    config = load(SEGMENTATION, load_from=path, **options)
    runner = Runner(nn.Linear(1, 1), str(root / 'run'), experiment_name='classes', default_scope='mmseg')
    watched = WatchedLoaders(runner, config, (part,))
    dataset = SimpleNamespace(metainfo=dict(classes=CLASSES))
    return [f'{finding.level}: {finding}' for finding in watched._compare_checkpoint(part, dataset)]


CLASSES = ('ball', 'box', 'tent')


@pytest.mark.parametrize(
    'classes, said',
    [
        (('ball', 'box', 'tent'), []),
        (['Ball ', 'box', 'tent'], []),
        (
            ('box', 'ball', 'tent'),
            ["error: .*label 0 is 'ball', but .*epoch_1.pth was trained with 'box' there: set meta"],
        ),
        (('b-all', 'box', 'tent'), ["warning: .*label 0 is 'ball', .* 'b-all' there"]),
        (('ball', 'box'), ['error: .*it has 3 classes, and .*epoch_1.pth was trained on 2: set metainfo=dict']),
        (('ball', 'box', 'Zelt'), [r"warning: .*label 2 is 'tent', .* 'Zelt' there \(1 of 3 names differ\)"]),
        (None, []),
    ],
)
def test_classes_of_the_tested_checkpoint(classes, said, root):
    found = compare_checkpoint(root, classes)
    assert len(found) == len(said) and all(map(re.match, said, found)), found


def test_only_what_goes_on_needs_the_classes_of_its_checkpoint(root):
    assert compare_checkpoint(root, ('box', 'ball', 'tent'), 'train', resume=True)
    assert not compare_checkpoint(root, ('box', 'ball', 'tent'), 'train')  # new classes on old weights
    assert not compare_checkpoint(root, ('box', 'ball'), model__text_encoder=dict(type='CLIPTextEncoder'))


# Loaders, batches, schedules, metrics --------------------------------------------------------------------------------


def test_options_that_need_workers_follow():
    loader = dict(batch_size=2, num_workers=0, persistent_workers=True, prefetch_factor=4)
    config = Config(dict(train_dataloader=loader, test_dataloader=dict(loader, num_workers=2)))
    fit_workers(config, ('train', 'test'))
    assert config.train_dataloader == dict(batch_size=2, num_workers=0, persistent_workers=False)
    assert config.test_dataloader == dict(loader, num_workers=2)
    DataLoader([1], **config.train_dataloader)
    for option, value in (('num_workers', -1), ('batch_size', 0), ('batch_size', 'two')):
        config = Config(dict(train_dataloader=dict(loader, **{option: value})))
        with pytest.raises(UserError, match=rf'^train_dataloader\.{option} is {value!r}: give a whole number'):
            fit_workers(config, ('train',))


def pooled(norm: nn.Module) -> nn.Module:
    """A head with a branch as that of PSPNet and ASPP."""
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU()))
    return nn.ModuleDict(dict(decode_head=nn.ModuleDict(dict(image_pool=branch))))


@pytest.mark.parametrize(
    ('images', 'size', 'drop', 'message'),
    [
        (8, 1, False, r'batch_size is 1, and decode_head\.image_pool .*train_dataloader\.batch_size=2'),
        (9, 4, False, r'the last batch of an epoch has one image.*train_dataloader\.drop_last=True'),
        (9, 4, True, None),
        (8, 4, False, None),
    ],
)
def test_batches_of_one_image(images, size, drop, message):
    loader = DataLoader(list(range(images)), batch_size=size, drop_last=drop)
    check_single_images(loader, pooled(nn.GroupNorm(2, 4)))
    check_single_images(loader, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)))
    if message is None:
        check_single_images(loader, pooled(nn.BatchNorm2d(4)))
    else:
        with pytest.raises(UserError, match=message):
            check_single_images(loader, pooled(nn.BatchNorm2d(4)))


@pytest.mark.parametrize(
    ('evaluator', 'key', 'message'),
    [
        (dict(type='CocoMetric', metric=['bbox', 'segm']), 'coco/segm_mAP', None),
        (dict(type='CocoMetric', metric=['bbox', 'segm']), 'auto', None),
        (dict(type='CocoMetric'), 'bbox_mAP', 'save_best=coco/bbox_mAP'),
        (dict(type='CocoMetric'), 'coco/segm_mAP', 'save_best=coco/bbox_mAP'),
        (dict(type='CocoMetric', prefix='mine'), 'mine/bbox_mAP_50', None),
        (dict(type='IoUMetric', iou_metrics=['mIoU']), 'mIoU', None),
        (dict(type='IoUMetric', iou_metrics=['mIoU']), 'miou', 'it gives aAcc, mIoU, mAcc: .*save_best=mIoU'),
        (dict(type='IoUMetric', iou_metrics=['mFscore']), 'mFscore', 'default_hooks.checkpoint.rule=greater'),
        (dict(type='mmseg.IoUMetric'), 'IoU.road', 'which no validation gives.*save_best=mIoU'),
        (dict(type='Accuracy', topk=(1, 5)), 'accuracy/top1', None),
        (dict(type='Accuracy', topk=1), 'accuracy/top5', 'save_best=accuracy/top1'),
        (dict(type='VOCMetric', metric='mAP'), 'pascal_voc/mAP', None),
        (dict(type='VOCMetric', metric='mAP'), 'mAP', 'save_best=pascal_voc/mAP'),
        ([dict(type='Accuracy'), dict(type='MyMetric')], 'my/value', 'rule=greater'),
        (dict(type='MyMetric'), 'my/mAP', None),
    ],
)
def test_save_best(evaluator, key, message):
    config = Config(dict(val_evaluator=evaluator, default_hooks=dict(checkpoint=dict(save_best=key))))
    if message is None:
        check_best(config)
    else:
        with pytest.raises(UserError, match=message):
            check_best(config)


@pytest.mark.ops
@pytest.mark.parametrize(
    ('place', 'owner', 'meant'),
    [
        ('default_hooks.checkpoints', 'default_hooks', 'checkpoint'),
        ('default_hooks.checkpoint.save_bst', 'SafeCheckpointHook', 'save_best'),
        ('param_scheduler.0.ends', 'LinearLR', 'end'),
        ('train_cfg.max_epoch', 'EpochBasedTrainLoop', 'max_epochs'),
        ('optim_wrapper.optimizer.learning_rate', 'AdamW', None),
        ('optim_wrapper.paramwise_cfg.norm_decay_mul', 'DefaultOptimWrapperConstructor', 'norm_decay_mult'),
        ('train_dataloader.batchsize', 'DataLoader', 'batch_size'),
        ('train_dataloader.dataset.ann_files', 'CocoDataset', 'ann_file'),
        ('train_dataloader.dataset.filter_cfg.filter_empty_gts', 'CocoDataset', 'filter_empty_gt'),
        ('train_dataloader.dataset.pipeline.2.keep_ration', 'Resize', 'keep_ratio'),
        ('test_evaluator.metrics', 'CocoMetric', 'metric'),
        ('model.roi_head.bbox_head.num_clases', 'ConvFCBBoxHead', 'num_classes'),
    ],
)
def test_a_misspelt_setting(place, owner, meant):
    assert not check_settings(load(DETECTION), training=True)
    hint = f"is '{meant}' meant" if meant else 'it has .* lr'
    with pytest.raises(UserError, match=rf'^{place} is not a setting of {owner}: {hint}'):
        check_settings(load(DETECTION, **{place: 1}), training=True)


def test_a_misspelt_name_at_the_top_is_told():
    """It may be a variable of the user's own."""
    config = load(DETECTION, optim_wraper=1, own_variable=2)
    line = "optim_wraper is not a setting of MMEngine: is 'optim_wrapper' meant?"
    assert check_settings(config, training=True) == [line]
    assert not check_settings(config, training=False)


def test_a_test_reads_no_settings_of_the_training():
    assert not check_settings(load(SEGMENTATION, train_cfg__max_iter=1), training=False)


def schedule(*schedulers, **loop):
    return list(find_misfits(Config(dict(train_cfg=loop, param_scheduler=list(schedulers))), 10))


WARM_UP = dict(type='LinearLR', by_epoch=False, begin=0, end=500)
COSINE = dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=40, T_max=40)
STEPS = dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11])


def test_schedules_of_other_lengths():
    assert not schedule(dict(WARM_UP, end=20), COSINE, max_iters=40)
    assert not schedule(WARM_UP, STEPS, max_epochs=60)
    assert not schedule(dict(COSINE, by_epoch=True, begin=20, T_max=20), max_epochs=40)
    (line,) = schedule(WARM_UP, max_iters=6)
    assert 'the warm-up param_scheduler.0 takes 500 iterations and the training 6' in line
    assert line.endswith('--cfg-options param_scheduler.0.end=1')
    (line,) = schedule(STEPS, max_epochs=4)
    assert 'all milestones of param_scheduler.0, 8, 11, are behind the end of the training at 4 epochs' in line
    (line,) = schedule(COSINE, max_iters=80)
    assert 'ends at 40 iterations and the training at 80: the learning rate stays as it is' in line
    (line,) = schedule(COSINE, max_iters=20)
    assert line.endswith('param_scheduler.0.end=20 param_scheduler.0.T_max=20')
    (line,) = schedule(dict(COSINE, begin=20, T_max=20), max_iters=5)
    assert 'begins at 20 iterations and the training ends at 5: it has no effect' in line


def test_the_demo_and_the_shipped_recipes_fit():
    for path in (SEGMENTATION, DETECTION, *sorted((REPO / 'configs').glob('*/*efficientmod-s_*.py'))):
        assert not list(find_misfits(load(path), 1000)), path
        assert not check_settings(load(path), training=True), path
