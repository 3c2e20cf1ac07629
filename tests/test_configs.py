"""Every config loads, builds, trains the right thing and holds only what differs."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from helpers import REPO, build_model

ARCHS = {'xxs': 'xxs', 'xs': 'xs', 's': 's', 's-conv': 's_conv'}
DETECTION = {name: REPO / f'configs/detection/mask-rcnn_efficientmod-{name}_fpn_8xb4-1x_coco.py' for name in ARCHS}
SEGMENTATION = {
    name: REPO / f'configs/segmentation/fpn_efficientmod-{name}_8xb4-40k_ade20k-512x512.py' for name in ARCHS
}
CLASSIFICATION = {name: REPO / f'configs/classification/efficientmod-{name}_8xb256_in1k.py' for name in ARCHS}
BACKBONES = sorted((REPO / 'configs/_base_/backbones').glob('*.py'))

# `python tests/test_configs.py` writes it again, after a change that is meant.
RECORD = REPO / 'tests/data/configs.json'
RECORDED = json.loads(RECORD.read_text())
NAMES = {stem for group in RECORDED.values() for stem in group['configs']}
# Keys that need not be as recorded: what a leaf takes from its backbone's file, and what only tools read.
NOT_RECORDED = (
    *('backbone', 'channels', 'normalisation'),
    *('custom_imports', 'data_preprocessor', 'tta_model', 'tta_pipeline'),
)


def configs():
    return sorted([*(REPO / 'configs').glob('[!_]*/*.py'), *(REPO / 'demo/configs').glob('*.py')])


def flatten(node: object, place: str = '') -> dict[str, str]:
    """Dotted place -> the value as Python writes it, of all that nested dicts and lists of dicts hold."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, (list, tuple)) and any(isinstance(item, (dict, list)) for item in node):
        items = list(enumerate(node))
    else:
        return {place: repr(node)}
    flat = [flatten(child, f'{place}.{key}' if place else str(key)) for key, child in items]
    return {key: value for part in flat for key, value in part.items()} or {place: repr(node)}


def describe(path) -> dict[str, str]:
    """A config's settings, how much each part of its model holds and trains, and a hash of all names and shapes."""
    config = Config.fromfile(path)
    settings = flatten({key: value for key, value in config.to_dict().items() if key not in NOT_RECORDED})
    model = build_model(config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = sorted((name, tuple(value.shape), name in trained) for name, value in model.state_dict().items())
    for name, part in model.named_children():
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
        count, learnt = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
        settings[f'({name})'] = f'{len(part.state_dict())} tensors, {count} parameters, {learnt} of them trained'
    settings['(names, shapes)'] = hashlib.sha256(repr(tensors).encode()).hexdigest()[:16]
    return settings


def group_of(stem: str) -> str:
    """Configs of one group have most settings in common."""
    return next(name for name in ('mask-rcnn', 'fpn', 'timm', '') if stem.startswith(name)) or 'others'


def recorded(stem: str) -> dict[str, str]:
    """What the record says of a config: what its group has in common, changed by its own."""
    group = RECORDED[group_of(stem)]
    whole = {**group['common'], **group['configs'][stem]}
    return {key: value for key, value in whole.items() if value is not None}


def record() -> None:
    """Writes the record, a line for each setting: in a group, those of most configs once, then what each differs in."""
    found = {path.stem: describe(path) for path in configs()}
    groups: dict[str, dict] = {}
    for name in sorted({group_of(stem) for stem in found}):
        members = {stem: settings for stem, settings in sorted(found.items()) if group_of(stem) == name}
        common = {}
        for key in dict.fromkeys(key for settings in members.values() for key in settings):
            (value, count), *_ = Counter(settings.get(key) for settings in members.values()).most_common(1)
            if value is not None and 2 * count > len(members):
                common[key] = value
        own = {
            stem: {
                **{key: value for key, value in settings.items() if common.get(key) != value},
                **{key: None for key in common if key not in settings},
            }
            for stem, settings in members.items()
        }
        groups[name] = dict(common=common, configs=own)
    RECORD.write_text(json.dumps(groups, indent=0) + '\n')


# MMDetection, and so its backbones in a segmentor, need MMCV's operators.
BUILT = [
    pytest.param(
        path,
        id=path.stem,
        marks=() if path.stem.startswith(('fpn_efficientmod', 'efficientmod', 'timm')) else pytest.mark.ops,
    )
    for path in configs()
]


@pytest.mark.both_stacks
@pytest.mark.parametrize('path', [param for param in BUILT if param.id in NAMES])
def test_settings_and_model_are_as_recorded(path, monkeypatch):
    for root in ('COCO_ROOT', 'ADE20K_ROOT', 'IMAGENET_ROOT', 'DEMO_ROOT'):
        monkeypatch.delenv(root, raising=False)
    assert describe(path) == recorded(path.stem)


def test_every_recorded_config_exists():
    assert {path.stem for path in configs()} >= NAMES


@pytest.mark.both_stacks
@pytest.mark.parametrize('path', BUILT)
def test_neck_fits_what_the_backbone_puts_out(path):
    config = Config.fromfile(path)
    model = build_model(config).eval()
    with torch.no_grad():
        levels = model.backbone(torch.zeros(1, 3, 64, 128))
    if 'neck' not in config.model:  # a whole model of timm
        assert [tuple(level.shape) for level in levels] == [(1, 1000)]
        return
    needed = config.model.neck.in_channels
    needed = dict(zip((4, 8, 16, 32), needed)) if isinstance(needed, list) else {32: needed}
    assert [tuple(level.shape) for level in levels] == [
        (1, channels, 64 // stride, 128 // stride) for stride, channels in needed.items()
    ]
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=config.auto_scale_lr.base_batch_size)


@pytest.mark.parametrize('path', configs(), ids=lambda path: path.stem)
def test_config_inherits_from_our_own_bases(path):
    text = path.read_text()
    assert '/_base_/models/' in text and '::' not in text and 'custom_imports' not in text


@pytest.mark.parametrize('path', BACKBONES, ids=lambda path: path.stem)
def test_every_backbone_has_a_config_of_each_task_that_takes_it_from_its_file(path):
    for pattern in ('detection/mask-rcnn_{}_fpn_8xb4-*.py', 'segmentation/fpn_{}_8xb4-*.py'):
        (leaf,) = (REPO / 'configs').glob(pattern.format(path.stem))
        assert f"    '../_base_/backbones/{path.name}',\n" in leaf.read_text()
        config = Config.fromfile(leaf)
        assert config.model.neck.in_channels == config.channels
        if path.stem != 'resnet-18' or 'detection' in pattern:  # segmentation takes the one with the deep stem
            assert config.backbone.items() <= config.model.backbone.items()


@pytest.mark.both_stacks
def test_command_line_changes_the_model_alone_and_a_dump_reads_back(tmp_path):
    config = Config.fromfile(DETECTION['s'])
    config.merge_from_dict({'model.backbone.init_cfg': None, 'model.neck.in_channels': [1, 2, 3, 4]})
    assert config.model.backbone == dict(type='mmefficientmod.EfficientMod', arch='s', init_cfg=None)
    assert config.model.neck.in_channels == [1, 2, 3, 4]
    assert (config.backbone.init_cfg.type, config.channels) == ('Pretrained', [32, 64, 144, 312])
    config.dump(tmp_path / 'dump.py')
    assert Config.fromfile(tmp_path / 'dump.py').to_dict() == config.to_dict()


@pytest.mark.parametrize('name', ARCHS)
def test_detection_recipe(name):
    config = Config.fromfile(DETECTION[name])
    assert config.model.backbone.arch == ARCHS[name]
    assert config.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05))
    warm_up, steps = config.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end, warm_up.by_epoch) == ('LinearLR', 0.001, 500, False)
    assert (steps.type, steps.milestones, steps.gamma) == ('MultiStepLR', [8, 11], 0.1)
    assert config.train_cfg.max_epochs == 12
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size
    for pipeline in (config.train_dataloader.dataset.pipeline, config.test_dataloader.dataset.pipeline):
        resize = next(step for step in pipeline if step.type == 'Resize')
        assert resize == dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    assert config.model.data_preprocessor.pad_size_divisor == 32
    assert (config.model.neck.out_channels, config.model.neck.num_outs) == (256, 5)


@pytest.mark.parametrize('name', ARCHS)
def test_segmentation_recipe(name):
    config = Config.fromfile(SEGMENTATION[name])
    assert config.model.backbone.arch == ARCHS[name]
    assert config.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))
    warm_up, cosine = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.1, 1000, False)
    assert (cosine.type, cosine.T_max, cosine.by_epoch) == ('CosineAnnealingLR', 40000, False)
    assert (cosine.get('eta_min_ratio', 0), cosine.get('eta_min', 0)) == (0 if name == 's-conv' else 1e-6, 0)
    assert config.train_cfg.max_iters == 40000
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size
    steps = [step.type for step in config.test_dataloader.dataset.pipeline]
    assert steps == ['LoadImageFromFile', 'Resize', 'ResizeToMultiple', 'LoadAnnotations', 'PackSegInputs']
    head = config.model.decode_head
    assert (head.channels, head.dropout_ratio, head.num_classes, head.norm_cfg.type) == (128, 0.1, 150, 'SyncBN')
    assert config.model.test_cfg.mode == 'whole'


@pytest.mark.parametrize('name', ARCHS)
def test_classification_recipe(name):
    config = Config.fromfile(CLASSIFICATION[name])
    assert (config.model.backbone.arch, config.model.backbone.init_cfg) == (ARCHS[name], None)
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=4e-3, weight_decay=0.05)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    warm_up, cosine = config.param_scheduler
    assert warm_up.start_factor * 4e-3 == pytest.approx(1e-6) and warm_up.end == cosine.begin == 5
    assert (
        (cosine.type, cosine.eta_min, cosine.end)
        == ('CosineAnnealingLR', 1e-5, config.train_cfg.max_epochs)
        == (*('CosineAnnealingLR', 1e-5, 300),)
    )
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 2048
    steps = {step.type: step for step in config.train_pipeline}
    assert (steps['RandAugment'].magnitude_level, steps['RandAugment'].magnitude_std) == (9, 0.5)
    assert steps['RandomErasing'].erase_prob == 0.25
    assert [(part.type, part.alpha) for part in config.model.train_cfg.augments] == [('Mixup', 0.8), ('CutMix', 1.0)]
    assert (config.model.head.loss.type, config.model.head.loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    (average,) = [hook for hook in config.custom_hooks if hook.type == 'EMAHook']
    assert 1 - average.momentum == 0.9998


@pytest.mark.both_stacks
def test_ade20k_test_images_grow_to_multiples_of_32_and_the_truth_keeps_its_size(tmp_path):
    import numpy as np
    from mmcv.transforms import Compose
    from PIL import Image

    config = Config.fromfile(SEGMENTATION['s'])
    importlib.import_module('mmseg.datasets')
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (300, 421, 3), np.uint8)).save(tmp_path / 'image.png')
    Image.fromarray(np.zeros((300, 421), np.uint8)).save(tmp_path / 'map.png')
    sample = dict(
        img_path=str(tmp_path / 'image.png'),
        seg_map_path=str(tmp_path / 'map.png'),
        seg_fields=[],
        reduce_zero_label=True,
        label_map=None,
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        sample = Compose(config.test_dataloader.dataset.pipeline)(sample)
    assert tuple(sample['inputs'].shape) == (3, 512, 736)  # 512 x 719 after the resizing that keeps the ratio
    assert sample['data_samples'].gt_sem_seg.shape == (300, 421)


@pytest.mark.parametrize(
    ('variable', 'paths'), [('COCO_ROOT', DETECTION), ('ADE20K_ROOT', SEGMENTATION), ('IMAGENET_ROOT', CLASSIFICATION)]
)
def test_data_root_comes_from_the_environment(variable, paths, monkeypatch):
    monkeypatch.setenv(variable, '/elsewhere')
    config = Config.fromfile(paths['s'])
    roots = {config[f'{split}_dataloader'].dataset.data_root.rstrip('/') for split in ('train', 'val', 'test')}
    assert roots == {'/elsewhere'}
    if variable == 'COCO_ROOT':
        assert config.val_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'


if __name__ == '__main__':
    record()
