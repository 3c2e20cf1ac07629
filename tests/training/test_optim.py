"""Layer-wise learning-rate decay: MMPreTrain's own constructor, and the project's in every codebase."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from helpers import REPO, build_model, classifier_config

CONSTRUCTOR = 'mmefficientmod.LayerDecayOptimWrapperConstructor'
NUM_BLOCKS = 2 + 2 + (6 + 1) + (2 + 2)  # of xxs
CONFIGS = {
    'mmdet': 'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py',
    'mmseg': 'configs/segmentation/fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512.py',
}
# Layers above each parameter: the last is whatever lies outside the backbone.
LAYERS_ABOVE = {
    'backbone.stages.3.3.fc2.weight': 1,
    'backbone.stages.3.0.norm.weight': 4,
    'backbone.patch_embeds.3.proj.weight': 4,
    'backbone.stages.2.6.attn.qkv.weight': 5,
    'backbone.stages.0.0.gamma': NUM_BLOCKS,
    'backbone.patch_embeds.0.proj.weight': NUM_BLOCKS + 1,
}


def build_wrapper(codebase, constructor, **paramwise_cfg):
    config = classifier_config(10) if codebase == 'mmpretrain' else Config.fromfile(REPO / CONFIGS[codebase])
    model = build_model(config)
    wrapper = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05), constructor=constructor, paramwise_cfg=paramwise_cfg
    )
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return model, build_optim_wrapper(model, wrapper)


def rates_by_name(model, wrapper):
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(group['params'][0])]: group['lr'] for group in wrapper.optimizer.param_groups}


def test_constructor_of_mmpretrain():
    model, wrapper = build_wrapper(
        'mmpretrain', 'mmpretrain.LearningRateDecayOptimWrapperConstructor', layer_decay_rate=0.5
    )
    rates = rates_by_name(model, wrapper)
    assert rates['head.fc.weight'] == 1
    assert all(rates[name] == 0.5**above for name, above in LAYERS_ABOVE.items())


@pytest.mark.both_stacks
@pytest.mark.parametrize('codebase', [pytest.param('mmdet', marks=pytest.mark.ops), 'mmseg', 'mmpretrain'])
def test_rates_of_every_codebase(codebase):
    model, wrapper = build_wrapper(
        codebase,
        CONSTRUCTOR,
        layer_decay_rate=0.5,
        norm_decay_mult=0.0,
        custom_keys={'gamma': dict(lr_mult=3.0, decay_mult=0.0)},
    )
    rates = rates_by_name(model, wrapper)
    assert rates.keys() == dict(model.named_parameters()).keys()
    for name, above in LAYERS_ABOVE.items():
        assert rates[name] == pytest.approx(0.5**above * (3 if 'gamma' in name else 1)), name
    assert all(rate == 1 for name, rate in rates.items() if not name.startswith('backbone.'))
    decays = {group['weight_decay'] for group in wrapper.optimizer.param_groups}
    assert decays == {0.0, 0.05}  # what the default constructor does is kept


def test_a_wrapped_backbone_is_asked_by_its_own_names():
    """Not its wrapper, which passes the question on, nor a classifier around it, which takes it without a prefix."""
    config = classifier_config(10)
    backbone = config.model.backbone
    config.model.backbone = dict(type='LoRAModel', module=backbone, rank=2, targets=[dict(type='fc1')])
    model = torch.nn.ModuleDict(dict(student=build_model(config)))
    model.requires_grad_(True)
    settings = dict(optimizer=dict(type='SGD', lr=1), constructor=CONSTRUCTOR, paramwise_cfg=dict(layer_decay_rate=0.5))
    rates = rates_by_name(model, build_optim_wrapper(model, settings))
    for name, above in LAYERS_ABOVE.items():
        found = [rate for other, rate in rates.items() if other.startswith(f'student.backbone.module.{name[9:-6]}')]
        assert found and all(rate == pytest.approx(0.5**above) for rate in found), name


def test_an_optimizer_without_a_rate_is_refused():
    with pytest.raises(ValueError, match='add lr to the optimizer'):
        build_optim_wrapper(
            build_model(classifier_config(10)),
            dict(optimizer=dict(type='AdamW'), constructor=CONSTRUCTOR, paramwise_cfg=dict(layer_decay_rate=0.5)),
        )


@pytest.mark.parametrize('rate', [None, 0, 1.5, 'high'])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(ValueError, match='needs layer_decay_rate, above 0 and at most 1, got'):
        build_wrapper('mmseg', CONSTRUCTOR, layer_decay_rate=rate)


def test_a_backbone_without_depths_is_refused():
    with pytest.raises(ValueError, match=r'needs a backbone with get_layer_depth\(\); no part of Sequential has it'):
        build_optim_wrapper(
            torch.nn.Sequential(torch.nn.Linear(1, 1)),
            dict(optimizer=dict(type='SGD', lr=1), constructor=CONSTRUCTOR, paramwise_cfg=dict(layer_decay_rate=0.5)),
        )
