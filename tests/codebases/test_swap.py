"""The backbone swap: stock configs of MMDetection and MMSegmentation run with EfficientMod."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope, Registry

from helpers import HEIGHT, WIDTH, make_batch
from mmefficientmod.training.checks.levels import check_levels
from mmefficientmod.utils import UserError

ALL, LAST_THREE, LAST = (0, 1, 2, 3), (1, 2, 3), (3,)  # stages whose output a family reads

# Codebase, stock config, parts of the model whose `in_channels` follow the backbone, out_indices.
STOCK_CONFIGS = {
    'mask-rcnn': ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', ['neck'], ALL),
    'faster-rcnn': ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', ['neck'], ALL),
    'cascade-mask-rcnn': ('mmdet', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', ['neck'], ALL),
    'retinanet': ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', ['neck'], ALL),
    'fcos': ('mmdet', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', ['neck'], ALL),
    'atss': ('mmdet', 'atss/atss_r50_fpn_1x_coco.py', ['neck'], ALL),
    'gfl': ('mmdet', 'gfl/gfl_r50_fpn_1x_coco.py', ['neck'], ALL),
    'yolox': ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py', ['neck'], LAST_THREE),
    'rtmdet': ('mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', ['neck'], LAST_THREE),
    'sparse-rcnn': ('mmdet', 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', ['neck'], ALL),
    'detr': ('mmdet', 'detr/detr_r50_8xb2-150e_coco.py', ['neck'], LAST),
    'deformable-detr': ('mmdet', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', ['neck'], LAST_THREE),
    'semantic-fpn': ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', ['neck'], ALL),
    'upernet': ('mmseg', 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', ['decode_head', 'auxiliary_head'], ALL),
    'segformer': ('mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', ['decode_head'], ALL),
    'pspnet': ('mmseg', 'pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py', ['decode_head', 'auxiliary_head'], ALL),
    'mask2former': ('mmseg', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', ['decode_head'], ALL),
}
ON_BOTH_STACKS = ('mask-rcnn', 'semantic-fpn')


def swap_backbone(model: ConfigDict, models: Registry, parts: list, out_indices: tuple) -> None:
    """Changes the backbone of a model's config and the `in_channels` of what reads it, no more."""
    model.backbone = dict(type='mmefficientmod.EfficientMod', arch='xxs', out_indices=out_indices)
    if 'pretrained' in model:  # MMSegmentation's older spelling of backbone.init_cfg
        model.pretrained = None
    channels = models.build(model.backbone).out_channels
    for part in (model[name] for name in parts):
        reads_all = isinstance(part.in_channels, (list, tuple))
        part.in_channels = list(channels) if reads_all else channels[part.in_index]


@pytest.mark.parametrize(
    'family',
    [
        pytest.param(
            name,
            marks=[
                *([pytest.mark.both_stacks] if name in ON_BOTH_STACKS else []),
                *([pytest.mark.ops] if codebase == 'mmdet' else []),
            ],
        )
        for name, (codebase, *_) in STOCK_CONFIGS.items()
    ],
)
def test_stock_config_trains_and_predicts(family):
    codebase, path, parts, out_indices = STOCK_CONFIGS[family]
    registry = import_module(f'{codebase}.registry')
    config = Config.fromfile(Path(import_module(codebase).__file__).parent / '.mim/configs' / path)
    pack = config.train_pipeline[-1].type
    with_mask = any(step.get('with_mask') for step in config.train_pipeline)
    if codebase == 'mmseg':
        config.model.data_preprocessor.size = (128, 160)  # the batch is padded to it
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        swap_backbone(config.model, registry.MODELS, parts, out_indices)
        model = revert_sync_batchnorm(registry.MODELS.build(config.model))
        model.init_weights()
        check_levels(model)
        batch = make_batch(registry.TRANSFORMS, pack, with_mask)

        MessageHub.get_current_instance().update_info('iter', 0)  # as the runner does, for YOLOX
        losses = model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()
        predictions = model.eval().test_step(batch)

    assert loss.isfinite()
    for name, param in model.backbone.named_parameters():
        assert param.grad is not None, name
        assert param.grad.isfinite().all() and param.grad.any(), name

    assert len(predictions) == 2
    for prediction in predictions:
        if codebase == 'mmseg':
            classes = prediction.pred_sem_seg.data
            assert classes.shape == (1, HEIGHT, WIDTH)
            assert classes.min() >= 0 and classes.max() < model.decode_head.num_classes
        else:
            found = prediction.pred_instances
            assert found.bboxes.shape == (len(found), 4)
            assert found.bboxes.isfinite().all() and found.scores.isfinite().all()
            assert not with_mask or found.masks.shape == (len(found), HEIGHT, WIDTH)


@pytest.mark.ops
@pytest.mark.parametrize(
    ('family', 'out_indices', 'said'),
    [
        ('rtmdet', ALL, 'bbox_head reads levels of strides 8, 16, 32, and the neck gives strides 4, 8, 16, 32: set '),
        ('yolox', ALL, 'bbox_head reads levels of strides 8, 16, 32, and the neck gives strides 4, 8, 16, 32: set '),
        ('faster-rcnn', LAST_THREE, 'rpn_head reads levels of strides 4, 8, 16, 32, 64, and the neck gives strides 8'),
        ('sparse-rcnn', LAST_THREE, 'bbox_roi_extractor reads levels of strides 4, 8, 16, 32, and the neck gives'),
    ],
)
def test_levels_of_other_strides_than_the_head_reads_are_refused(family, out_indices, said):
    """MMDetection trains on them without an error."""
    codebase, path, parts, _ = STOCK_CONFIGS[family]
    registry = import_module(f'{codebase}.registry')
    config = Config.fromfile(Path(import_module(codebase).__file__).parent / '.mim/configs' / path)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        swap_backbone(config.model, registry.MODELS, parts, out_indices)
        model = registry.MODELS.build(config.model).train()
        before = {name: value.clone() for name, value in model.named_buffers()}
        with pytest.raises(UserError, match=said):
            check_levels(model)
    assert model.training and model.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
