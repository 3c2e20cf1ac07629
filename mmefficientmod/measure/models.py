"""Builds the measured models, with random weights, and their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from ..codebases.building import build_quietly
from ..zoo.backbones import task_backbones
from ..zoo.tasks import TASKS
from .records import PARTS, Case


def build_part(key: str, part: str, options: Mapping = MappingProxyType({})) -> nn.Module:
    """The part of the benchmark of that name with a backbone, with random weights, which do not change the work.

    Linear layers keep the size of their input: with smaller weights, such as those of standard deviation 0.02 that a
    training starts from, blocks do next to nothing, and no difference is seen.

    Args:
        key (str): The backbone.
        part (str): One of :data:`mmefficientmod.measure.records.PARTS`.
        options (Mapping): Changes of its config, by dotted name. Defaults to none.
    """
    config = task_backbones(TASKS[PARTS[part]])[key].load_config()
    config.merge_from_dict(dict(options))
    config.model.backbone.init_cfg = None
    if part in ('detector', 'segmentor', 'classifier'):
        model = build_quietly(config.model, config.default_scope)
    else:  # the codebase is not imported, which for MMDetection needs MMCV's operators
        scope = None if '.' in config.model.backbone.type else config.default_scope
        model = build_quietly(config.model.backbone, scope)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('gamma'):  # LayerScale starts at 1e-4, which would hide a wrong branch from the check
                parameter.fill_(0.5)
        for module in (model.backbone if hasattr(model, 'backbone') else model).modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5)
    return model


def detection_samples(batch: int, size: tuple[int, int]) -> list:
    """MMDetection's information about each image: height and width in pixels."""
    from mmdet.structures import DetDataSample

    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return [DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0))) for _ in range(batch)]


def make_images(case: Case, device: torch.device) -> torch.Tensor:
    """Random images of a case, always the same (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(case.batch, 3, *case.input_size, generator=generator).to(device)
