"""Predicts by a config and a checkpoint, through the inferencer of the config's library."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from ..checkpoints.names import BACKBONE_PREFIX, to_project_name
from ..checkpoints.reading import read_checkpoint
from ..checkpoints.weights import enumerate_names, find_weights
from ..codebases.config import find_classes, find_codebase, find_config, load_config
from ..codebases.packages import check_mmcv_ops
from ..utils import UserError, describe_error
from .results import Classification, Detections, Result, Segmentation, cut_mask

BOXES_ALONE = 'predicts no boxes: only detectors of boxes, with masks or without, are supported'


class InferencerModel:
    """A model of MMDetection, MMSegmentation or MMPreTrain.

    Args:
        config (str): A config file, or the name of an installed one.
        checkpoint (str): A checkpoint of the whole model.
        device (str, optional): Such as ``'cpu'`` or ``'cuda:0'``. Defaults to the best that there is.
        score_thr (float): The least score of an object. Defaults to 0.3.

    Raises:
        UserError, FileNotFoundError: With one line, if one of them cannot be used.
    """

    def __init__(self, config: str, checkpoint: str, device: str | None = None, score_thr: float = 0.3) -> None:
        path = find_config(config)
        with _quiet():
            settings = load_config(path)
        codebase = find_codebase(settings, path, 'test')
        device = _check_device(device)
        content = read_checkpoint(checkpoint)
        weights = find_weights(content, checkpoint)
        check_mmcv_ops(codebase)
        self.score_thr = score_thr
        self.task, build, self.predict = {
            'mmdet': ('detection', _det_inferencer, self._detect),
            'mmseg': ('segmentation', _seg_inferencer, self._segment),
            'mmpretrain': ('classification', _cls_inferencer, self._classify),
        }[codebase]
        self.mixed_sizes = self.task != 'segmentation'  # MMSegmentation refuses a batch of several sizes
        try:
            with _quiet():
                init_default_scope(codebase)  # MMPreTrain's inferencer leaves it as it is
                self._inferencer = build(settings, checkpoint, device)
        except Exception as error:  # whatever the parts of a model raise about their settings
            raise UserError(f'{path}: its model cannot be built ({describe_error(error)})') from error
        model = self._inferencer.model
        _check_fit(model, weights, checkpoint, path)
        # Not the model's own: without a note in the checkpoint, the libraries name COCO's and Cityscapes' classes.
        self.classes, self.palette = find_classes(content, settings)

    def _detect(self, images: list[np.ndarray]) -> list[Result]:
        found = self._inferencer(images, batch_size=len(images), return_datasamples=True, no_save_vis=True)
        return [self._objects(sample) for sample in found['predictions']]

    def _objects(self, sample: Any) -> Detections:
        if 'pred_instances' not in sample or 'bboxes' not in sample.pred_instances:
            raise UserError(f'{type(self._inferencer.model).__name__} {BOXES_ALONE}')
        instances = sample.pred_instances
        instances = instances[instances.scores >= self.score_thr].cpu()
        masks = instances.get('masks')
        return Detections(
            _tensor(instances.bboxes).numpy().astype(np.float32),
            instances.scores.numpy().astype(np.float32),
            instances.labels.numpy(),
            None if masks is None else [cut_mask(np.asarray(mask, bool)) for mask in masks],
        )

    def _segment(self, images: list[np.ndarray]) -> list[Result]:
        samples = self._inferencer(images, batch_size=len(images), return_datasamples=True)
        samples = samples if isinstance(samples, list) else [samples]
        kind = np.uint8 if len(samples[0].seg_logits.data) <= 256 else np.uint16
        return [Segmentation(sample.pred_sem_seg.data[0].cpu().numpy().astype(kind)) for sample in samples]

    def _classify(self, images: list[np.ndarray]) -> list[Result]:
        # Not its __call__, which draws a progress bar of its own for each.
        batches = self._inferencer.preprocess(images, batch_size=len(images))
        samples = [sample for batch in batches for sample in self._inferencer.forward(batch)]
        return [Classification(sample.pred_score.cpu().numpy()) for sample in samples]


def _tensor(boxes: Any) -> torch.Tensor:
    return boxes if isinstance(boxes, torch.Tensor) else boxes.tensor


def _check_device(device: str | None) -> str:
    try:
        kind = torch.device(device or get_device()).type
    except RuntimeError:
        raise UserError(f'--device {device} is none: give for example cpu or cuda:0') from None
    try:
        torch.zeros(1, device=device or kind)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {device} is not there: {describe_error(error)}') from error
    return device or kind


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries print, log and warn of while they build a model: what matters is checked here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


def _det_inferencer(config: Config, checkpoint: str, device: str) -> Any:
    from mmdet.apis import DetInferencer

    return DetInferencer(config, checkpoint, device=device, show_progress=False)


def _seg_inferencer(config: Config, checkpoint: str, device: str) -> Any:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(config, checkpoint, device=device)
    inferencer.show_progress = False
    return inferencer


def _cls_inferencer(config: Config, checkpoint: str, device: str) -> Any:
    from mmpretrain import ImageClassificationInferencer

    return ImageClassificationInferencer(config, checkpoint, device=device)


def _check_fit(model: torch.nn.Module, weights: dict, checkpoint: str, config: str) -> None:
    """Raises UserError for weights that are missing or of another shape, of which MMEngine only warns."""
    given = {_project_name(name): value.shape for name, value in weights.items()}
    parameters = dict(model.named_parameters())
    missing = [name for name in parameters if name not in given]
    misshaped = [name for name, value in parameters.items() if name in given and given[name] != value.shape]
    kinds = {'missing': missing, 'of another shape': misshaped}
    listed = '; '.join(f'{len(names)} {kind}: {enumerate_names(names)}' for kind, names in kinds.items() if names)
    if listed:
        raise UserError(f'{checkpoint} does not fit {config} - {listed}')


def _project_name(name: str) -> str:
    prefix = BACKBONE_PREFIX if name.startswith(BACKBONE_PREFIX) else ''
    return prefix + to_project_name(name[len(prefix) :])
