"""What is exported: a config's model with the weights of a checkpoint, and what the config says of its use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import nn

from ..checkpoints.loading import load_pretrained, read_checkpoint
from ..checkpoints.names import BACKBONE_PREFIX
from ..checkpoints.weights import enumerate_names, find_weights, is_deploy_form
from ..codebases.building import build_quietly
from ..codebases.config import find_classes, find_codebase, find_config, load_config
from ..codebases.packages import check_mmcv_ops
from ..models import EfficientMod
from ..utils import UserError, describe_error


@dataclass
class Source:
    """A trained model."""

    model: nn.Module
    config: Config
    codebase: str
    classes: list[str]
    palette: list[list[int]]

    @property
    def task(self) -> str:
        """The task of the whole model."""
        return {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}[self.codebase]


def read_source(config_name: str, checkpoint: str, part: str) -> Source:
    """Builds the model of a config and loads a checkpoint: all of it, or for the backbone alone all of that.

    Args:
        config_name (str): A config of MMDetection or MMSegmentation: a path, or a name of an installed one.
        checkpoint (str): Of that model; for ``part='backbone'``, of the backbone alone as well.
        part (str): ``'model'`` or ``'backbone'``.

    Raises:
        UserError, FileNotFoundError, UserError: With one line, for what cannot work.
    """
    path = find_config(config_name)
    config = load_config(path)
    codebase = find_codebase(config, path, 'test')
    check_mmcv_ops(codebase)
    content = read_checkpoint(checkpoint)
    weights = find_weights(content, checkpoint)
    settings = config.get('model')
    if not isinstance(settings, ConfigDict) or 'type' not in settings:
        raise UserError(f'{path} has no model: give the config that the checkpoint was trained with')
    if not isinstance(settings.get('backbone'), ConfigDict):
        raise UserError(f'{path}: its model has no backbone of its own; a wrapped model is exported by its own config')
    channels = settings.backbone.get('in_channels', 3)
    if channels != 3:
        raise UserError(f'{path}: its backbone has in_channels={channels}; only those of three channels are exported')
    if config.get('data_preprocessor'):  # MMPreTrain's configs have it beside the model
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    settings.backbone.init_cfg = None
    settings.pop('init_cfg', None)
    # The authors' ImageNet files are whole classifiers by other names, which the classifier knows.
    whole = any(name.startswith(BACKBONE_PREFIX) for name in weights) or (codebase == 'mmpretrain' and part == 'model')
    if not whole and part == 'model':
        raise UserError(
            f'{checkpoint} holds a backbone alone: --part backbone exports it; a {settings.type} needs the checkpoint '
            'of its own training'
        )
    is_ours = str(settings.backbone.get('type')).endswith('EfficientMod')
    if is_ours and is_deploy_form(weights):
        settings.backbone.deploy = True
    try:
        model = build_quietly(settings, codebase)
    except Exception as error:  # whatever the parts of a model raise about their settings
        raise UserError(f'{path}: its model cannot be built ({describe_error(error)})') from error
    _load(model, weights, checkpoint, part, whole)
    classes, palette = find_classes(content, config)
    return Source(model.eval(), config, codebase, classes, palette)


def _load(model: nn.Module, weights: Mapping[str, torch.Tensor], path: str, part: str, whole: bool) -> None:
    if part == 'backbone' and isinstance(model.backbone, EfficientMod):
        load_pretrained(model.backbone, path, BACKBONE_PREFIX if whole else None)
        return
    target = model if whole else model.backbone
    own = target.state_dict()
    try:
        result = target.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:  # shapes
        line = str(error).splitlines()[-1].strip()
        raise UserError(f'{path} does not fit the config: {line}') from None
    missing = [name for name in result.missing_keys if part == 'model' or name.startswith('backbone') or not whole]
    missing = [name for name in missing if name in own and not name.endswith('num_batches_tracked')]
    unexpected = [] if part == 'backbone' else result.unexpected_keys
    if missing or unexpected:
        raise UserError(
            f'{path} does not fit the config: {len(missing)} missing: {enumerate_names(missing)}; '
            f'{len(unexpected)} unexpected: {enumerate_names(unexpected)}'
        )


def resize_rule(config: Config) -> dict:
    """How the config's test pipeline resizes a picture, as ``Description.resize`` has it."""
    dataset: Any = (config.get('test_dataloader') or {}).get('dataset') or {}
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    pipeline = dataset.get('pipeline') or config.get('test_pipeline') or []
    rule: dict[str, Any] = dict(scale=None, keep_ratio=True, multiple=1, short=None, crop=None)
    for step in pipeline:
        kind = str(step.get('type')).rpartition('.')[2]
        if kind == 'Resize' and step.get('scale'):
            scale = step['scale']
            scale = [scale, scale] if isinstance(scale, (int, float)) else list(scale)
            rule.update(scale=scale, keep_ratio=bool(step.get('keep_ratio', False)))
        elif kind == 'ResizeEdge' and step.get('edge', 'short') == 'short':
            rule['short'] = int(step['scale'])
        elif kind == 'CenterCrop':
            rule['crop'] = int(step['crop_size'])
        elif kind == 'ResizeToMultiple':
            rule['multiple'] = int(step.get('size_divisor', 32))
    return rule
