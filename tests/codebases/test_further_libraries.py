"""MMPose and MMYOLO: a stock model of each with EfficientMod in it, a training step in a fresh process.

STACK=oldest alone has both. Their data reader xtcocotools has no wheel for NumPy 2.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip('mmpose', reason='a part of STACK=oldest')
pytest.importorskip('xtcocotools', reason='a part of STACK=oldest')

STOCK = """
from importlib import import_module
from pathlib import Path

import mmefficientmod
import mmcv
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

def stock(library, path, changes):
    root = Path(import_module(library).__file__).parent
    config = Config.fromfile(root / '.mim/configs' / path)
    import_module(f'{library}.utils').register_all_modules()
    config.merge_from_dict(changes)
    return MODELS.build(config.model).train()

def step(losses, backbone):
    sum(torch.as_tensor(value) for name, value in losses.items() if 'loss' in name).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in backbone.parameters())
"""
MMPOSE = """
from mmpose.testing import get_packed_inputs

backbone = dict(_delete_=True, type='mmefficientmod.EfficientMod', arch='xxs', out_indices=(3,))
path = 'body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'
model = stock('mmpose', path, {'model.backbone': backbone, 'model.head.in_channels': 256})
batch = model.data_preprocessor(get_packed_inputs(2), training=True)
step(model(**batch, mode='loss'), model.backbone)
"""
MMYOLO = """
mmcv.__version__ = '2.0.1'  # MMYOLO wants MMCV below 2.1.0; nothing between the two concerns this model

backbone = dict(_delete_=True, type='mmefficientmod.EfficientMod', arch='xxs', out_indices=(1, 2, 3))
neck = dict(in_channels=[64, 128, 256], out_channels=128, widen_factor=1.0)
head = dict(in_channels=128, feat_channels=128, widen_factor=1.0)
changes = {'model.backbone': backbone, 'model.neck': neck, 'model.bbox_head.head_module': head}
model = stock('mmyolo', 'rtmdet/rtmdet_s_syncbn_fast_8xb32-300e_coco.py', changes)
labels = torch.tensor([[0, 3, 10, 10, 100, 100], [1, 5, 20, 20, 90, 120]]).float()  # picture, class, box
batch = dict(bboxes_labels=labels, img_metas=[dict(batch_input_shape=(128, 128))] * 2)
step(model(torch.rand(2, 3, 128, 128), batch, mode='loss'), model.backbone)
"""


@pytest.mark.libraries
@pytest.mark.parametrize('program', [MMPOSE, MMYOLO], ids=['mmpose', 'mmyolo'])
def test_a_training_step_of_a_stock_model(program):
    command = [sys.executable, '-W', 'ignore', '-c', STOCK + program]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert done.returncode == 0, done.stdout
