"""Reads a trained model: the model of a config with the weights of a checkpoint, for exports and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.config import Config, ConfigDict
from torch import nn

from ..checkpoints.loading import load_weights, load_whole
from ..checkpoints.names import BACKBONE_PREFIX
from ..checkpoints.reading import read_checkpoint
from ..checkpoints.weights import check_values, is_deploy_form, pick_weights
from ..codebases.building import build_quietly
from ..codebases.config import (
    find_classes,
    find_codebase,
    find_config,
    find_test_pipeline,
    innermost_dataset,
    load_config,
)
from ..codebases.nodes import is_efficientmod, type_name
from ..codebases.packages import check_mmcv_ops
from ..utils import UserError, describe_error, quiet


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

    @property
    def num_classes(self) -> int:
        """The classes that the whole model tells apart."""
        if self.task == 'segmentation':
            return int(self.model.num_classes if self.model.out_channels == 1 else self.model.out_channels)
        head = getattr(self.model, 'roi_head', None)
        head = (
            head.bbox_head if head is not None else getattr(self.model, 'bbox_head', getattr(self.model, 'head', None))
        )
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        return int(getattr(head, 'num_classes', len(self.classes)))

    def test_data(self) -> tuple[str, Mapping, Sequence[Mapping]]:
        """Where the config has its innermost data set for tests, its settings and its pipeline."""
        return (*innermost_dataset(self.config, 'test'), find_test_pipeline(self.config))

    def fit_names(self) -> None:
        """Numbers the classes beyond those with names; more names than classes are those of other data."""
        missing = self.num_classes - len(self.classes)
        if missing < 0:
            self.classes, self.palette = [], []
        elif missing and self.classes:
            self.classes += [str(label) for label in range(len(self.classes), self.num_classes)]
            self.palette = []


def read_source(
    config_name: str,
    checkpoint: str | None,
    part: str = 'model',
    options: dict | None = None,
    for_export: bool = True,
    max_per_img: int | None = None,
    ema: bool = False,
) -> Source:
    """Builds the model of a config and loads a checkpoint: all of it, or for the backbone only all of that.

    Args:
        config_name (str): A config of MMDetection, MMSegmentation or MMPreTrain: a path, or a name of an installed one.
        checkpoint (str, optional): Of that model; for ``part='backbone'``, of the backbone only as well. None starts
            from the files of ``init_cfg``, as a training does.
        part (str): ``'model'`` or ``'backbone'``. Defaults to the model.
        options (dict, optional): Changes of the config, by dotted name.
        for_export (bool): Refuse models that cannot be exported at all. Defaults to True.
        max_per_img (int, optional): The most detections of a detector in an image. Defaults to the config's number.
        ema (bool): Take the moving average of the weights. Defaults to False.

    Raises:
        UserError, FileNotFoundError: With one line, for what cannot work.
    """
    path = find_config(config_name)
    with quiet():
        config = load_config(path, options)
    codebase = find_codebase(config, path, 'test')
    check_mmcv_ops(codebase)
    settings = _model_settings(config, path)
    if for_export:
        _check_exportable(settings, path)
    if max_per_img and codebase == 'mmdet':
        detection_settings(settings.setdefault('test_cfg', ConfigDict()))['max_per_img'] = max_per_img
    if checkpoint is None:
        content: dict = {}
        model = _build(settings, codebase, path)
        model.init_weights()
    else:
        model, content = _build_trained(settings, codebase, path, checkpoint, part, ema)
    source = Source(model.eval(), config, codebase, *find_classes(content, config))
    if part == 'model':
        source.fit_names()
    return source


def _build_trained(
    settings: ConfigDict, codebase: str, path: str, checkpoint: str, part: str, ema: bool
) -> tuple[nn.Module, dict]:
    """The model with the weights of a checkpoint, and the content of that file."""
    _drop_start(settings)
    content = read_checkpoint(checkpoint)
    weights, is_average = _find_finite(content, checkpoint, ema)
    is_prefixed = any(name.startswith(BACKBONE_PREFIX) for name in weights)
    # The authors' ImageNet files are whole classifiers by other names, which the classifier knows.
    if part == 'model' and 'backbone' in settings and not (is_prefixed or codebase == 'mmpretrain'):
        raise UserError(
            f'{checkpoint} holds a backbone only: --part backbone of tools/export.py exports it; the '
            f'{type_name(settings)} of {path} needs a checkpoint of its own training'
        )
    backbone = settings.get('backbone')
    is_ours = isinstance(backbone, ConfigDict) and is_efficientmod(backbone)
    if is_ours and is_deploy_form(weights):
        backbone['deploy'] = True
    model = _build(settings, codebase, path)
    if part == 'model':
        load_whole(model, weights, checkpoint)
        return model, content
    weights = _backbone_weights(weights) if is_prefixed else weights
    if is_ours:
        load_weights(model.backbone, weights, checkpoint, is_average)
    else:
        load_whole(model.backbone, weights, checkpoint)
    return model, content


def _model_settings(config: Config, path: str) -> ConfigDict:
    """The model's settings."""
    settings = config.get('model')
    if not isinstance(settings, ConfigDict) or 'type' not in settings:
        raise UserError(f'{path} has no model: give the config that the checkpoint was trained with')
    if config.get('data_preprocessor'):  # MMPreTrain's configs have it next to the model
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    return settings


def _drop_start(settings: ConfigDict) -> None:
    """Removes the files that a training would start from."""
    settings.pop('init_cfg', None)
    settings.pop('pretrained', None)
    if isinstance(settings.get('backbone'), ConfigDict):
        settings.backbone.init_cfg = None


def _find_finite(content: dict, path: str, ema: bool) -> tuple[dict[str, torch.Tensor], bool]:
    """The weights of a checkpoint, and whether they are a moving average; raises UserError for NaN and the like."""
    weights, is_average = pick_weights(content, path, ema)
    try:
        check_values({name: value for name, value in weights.items() if value.is_floating_point()})
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    return weights, is_average


def _build(settings: ConfigDict, codebase: str, path: str) -> nn.Module:
    try:
        with quiet():
            return build_quietly(settings, codebase)
    except Exception as error:  # whatever the parts of a model raise about their settings
        raise UserError(f'{path}: its model cannot be built ({describe_error(error)})') from error


def detection_settings(test_cfg: dict) -> dict:
    """The part of a detector's ``test_cfg`` that says which detections are kept."""
    return test_cfg.get('rcnn') or test_cfg


def _check_exportable(settings: ConfigDict, path: str) -> None:
    """Raises UserError for a model that no form can repeat."""
    if not isinstance(settings.get('backbone'), ConfigDict):
        raise UserError(f'{path}: its model has no backbone of its own; a wrapped model is exported by its own config')
    channels = settings.backbone.get('in_channels', 3)
    if channels != 3:
        raise UserError(f'{path}: its backbone has in_channels={channels}; only those of three channels are exported')


def _backbone_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a whole model's backbone, without the prefix."""
    size = len(BACKBONE_PREFIX)
    return {name[size:]: value for name, value in weights.items() if name.startswith(BACKBONE_PREFIX)}
