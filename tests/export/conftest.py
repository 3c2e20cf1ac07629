"""Small models with random weights that all matter: configs, checkpoints, and one exported folder of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import REPO, SMALL_ARCH, randomised
from mmefficientmod.codebases.building import build_quietly

BACKBONE = dict(_delete_=True, type='mmefficientmod.EfficientMod', arch=SMALL_ARCH)
CHANNELS = [8, 16, 24, 32]
SEGMENTOR = dict(
    backbone=BACKBONE,
    neck=dict(in_channels=CHANNELS, out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16),
)
DETECTOR = dict(
    backbone=BACKBONE,
    neck=dict(in_channels=CHANNELS, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, conv_out_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
)
ONE_STAGE = dict(
    backbone=BACKBONE,
    neck=dict(in_channels=CHANNELS, out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, num_classes=6),
)
DEMO = REPO / 'demo/configs'
CLASSIFIER = dict(
    backbone=dict(BACKBONE, out_indices=3),
    neck=dict(in_channels=CHANNELS[-1]),
    head=dict(in_channels=CHANNELS[-1], num_classes=6),
)
MODELS = {
    'classifier': (str(REPO / 'configs/classification/efficientmod-xxs_8xb256_in1k.py'), CLASSIFIER),
    'segmentor': (str(DEMO / 'fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'), SEGMENTOR),
    'detector': (str(DEMO / 'mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py'), DETECTOR),
    'retinanet': ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', ONE_STAGE),
    'fcos': ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', ONE_STAGE),
}


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """kind -> (its config, its checkpoint)."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            from mmengine.config import Config

            folder = tmp_path_factory.mktemp(kind)
            base, model = MODELS[kind]
            config = folder / f'{kind}.py'
            config.write_text(f'_base_ = {base!r}\nmodel = {model!r}\n')
            settings = Config.fromfile(config)
            settings.model.backbone.init_cfg = None
            torch.manual_seed(0)
            network = randomised(build_quietly(settings.model, settings.default_scope))
            if kind == 'detector':  # scores that differ
                for layer, factor in ((network.rpn_head.rpn_cls, 3), (network.roi_head.bbox_head.fc_cls, 4)):
                    layer.weight.data *= factor
            if kind in ('retinanet', 'fcos'):
                layer = network.bbox_head.retina_cls if kind == 'retinanet' else network.bbox_head.conv_cls
                layer.weight.data *= 2 if kind == 'retinanet' else 10
                layer.bias.data.fill_(-3)
            checkpoint = folder / f'{kind}.pth'
            torch.save(dict(state_dict=network.state_dict(), meta={}), checkpoint)
            made[kind] = config, checkpoint
        return made[kind]

    return make


@pytest.fixture(scope='session')
def exported(trained, tmp_path_factory):
    """(kind, further arguments of :class:`mmefficientmod.export.plan.ExportOptions`) -> (the model, the folder)."""
    made = {}

    def make(kind: str, **kwargs):
        from mmefficientmod.export.folder import export
        from mmefficientmod.export.plan import ExportOptions
        from mmefficientmod.export.source import read_source

        key = kind, repr(sorted(kwargs.items()))
        if key not in made:
            config, checkpoint = trained(kind)
            source = read_source(str(config), str(checkpoint), kwargs.get('part', 'model'))
            folder = tmp_path_factory.mktemp('exported') / kind
            export(source, ExportOptions(folder, **kwargs))
            made[key] = source.model, folder
        return made[key]

    return make


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """A few of the demo's scenes."""
    from scenes import make_dataset

    folder = tmp_path_factory.mktemp('scenes') / 'data'
    make_dataset(folder, 8, 2, (128, 96))
    return folder
