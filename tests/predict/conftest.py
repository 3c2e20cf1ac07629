"""Scenes, and checkpoints of a detector, a segmentor and a classifier whose weights all matter."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from helpers import REPO, build_model, classifier_config, randomised
from scenes import make_scene

DETECTOR = str(REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py')
SEGMENTOR = str(REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py')


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """A folder of three scenes, one of them portrait, named by numbers."""
    folder = tmp_path_factory.mktemp('pictures')
    for number, (width, height) in enumerate(((128, 96), (128, 96), (80, 120)), 7):
        scene = make_scene(np.random.default_rng(number), width, height)
        cv2.imwrite(str(folder / f'{number:012}.png'), scene.image[..., ::-1])
    return folder


def make_checkpoint(config, path, classes):
    """A checkpoint of a config's model whose weights all matter."""
    torch.manual_seed(0)
    model = build_model(Config.fromfile(config))
    model.init_weights() if 'fpn_' not in config else randomised(model.backbone)
    meta = dict(dataset_meta=dict(classes=classes, palette=[[25 * i, 250 - 25 * i, 90] for i in range(len(classes))]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return str(path)


@pytest.fixture(scope='session')
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp('detector') / 'detector.pth'
    return make_checkpoint(DETECTOR, path, tuple('abcdef'))


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory):
    path = tmp_path_factory.mktemp('segmentor') / 'segmentor.pth'
    return make_checkpoint(SEGMENTOR, path, [f'class {i}' for i in range(9)])


@pytest.fixture(scope='session')
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp('classifier')
    classifier_config(3, folder).dump(folder / 'config.py')
    config = str(folder / 'config.py')
    return config, make_checkpoint(config, folder / 'classifier.pth', ('left', 'middle', 'right'))
