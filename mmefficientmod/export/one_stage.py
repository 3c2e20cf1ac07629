"""Exportable form of detectors with dense heads, from pixels to a fixed number of detections.

:data:`mmefficientmod.export.supported.MODELS` says which heads there are, and how the maps of each are read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from ..utils import UserError
from .forms import PyramidForm
from .supported import Model, expect, matches, of_form
from .suppression import MAX_CANDIDATES, Candidates, check_nms, clip, keep_best


class Level(NamedTuple):
    """The maps of one level of one image, a row for each prior."""

    scores: Tensor  # (P, classes), the head's own
    deltas: Tensor  # (P, numbers of a box)
    factors: Tensor | None  # (P,), from 0 to 1
    kernels: Tensor | None  # (P, numbers of the layers that make a mask)
    priors: Tensor  # (P, 2 or 4)
    stride: float


# How boxes are made of chosen rows: priors (K, 2 or 4), deltas (K, n), stride -> (K, 4).
Decode = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


class Reading(NamedTuple):
    """How MMDetection reads the maps of a head."""

    decode: Decode
    clips: bool = True  # cuts boxes to the image
    is_probability: bool = False  # the head has applied the sigmoid
    one_label: bool = False  # each prior has only its best class, after its factor
    with_mask: bool = False  # the head also has kernels of masks, and maps that they are for


def _by_coder(head: nn.Module, priors: Tensor, deltas: Tensor, stride: float) -> Tensor:
    return head.bbox_coder.decode(priors, deltas)


def _by_distribution(head: nn.Module, priors: Tensor, deltas: Tensor, stride: float) -> Tensor:
    return head.bbox_coder.decode(head.anchor_center(priors), head.integral(deltas).reshape(-1, 4) * stride)


READINGS = {
    'coder': Reading(_by_coder),
    'distribution': Reading(_by_distribution),
    'boxes': Reading(lambda head, priors, deltas, stride: deltas * stride, clips=False, is_probability=True),
    'masks': Reading(
        lambda head, priors, deltas, stride: head.bbox_coder.decode(priors[:, :2], deltas), with_mask=True
    ),
    'objectness': Reading(
        lambda head, priors, deltas, stride: head._bbox_decode(priors, deltas), clips=False, one_label=True
    ),
}


class OneStageForm(PyramidForm):
    """A detector of MMDetection with a dense head, on one image of a fixed size.

    image (1, 3, H, W) pixels, image_size (2,) -> boxes (N, 4), scores (N,), labels (N,), for RTMDet-Ins image_masks
    (N, H / 8, W / 8), and left_out (), as :mod:`mmefficientmod.export.description` says.

    Args:
        model (nn.Module): The detector.
        size (tuple[int, int]): H and W.

    Raises:
        UserError: If the detector has a part whose work this form does not know.
    """

    task = 'detection'

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        kind = check_one_stage(model)
        super().__init__(model)
        self.reading = READINGS[kind.reading]
        self.with_mask = self.reading.with_mask
        self.output_names = ['boxes', 'scores', 'labels', *(['image_masks'] if self.with_mask else []), 'left_out']
        self.head = copy.deepcopy(model.bbox_head)
        if hasattr(self.head, 'deform_sampling'):
            self.head.deform_sampling = sample_shifted
        self.cfg = model.test_cfg
        with torch.no_grad():
            maps = self.head(self.pyramid(torch.zeros(1, 3, *size)))[0]
        sizes = [level.shape[-2:] for level in maps]
        options = dict(with_stride=True) if self.reading.one_label or self.with_mask else {}
        priors = self.head.prior_generator.grid_priors(sizes, device='cpu', **options)
        for i, level in enumerate(priors):
            self.register_buffer(f'priors{i}', level.float())

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        maps = self.head(self.pyramid(image))
        levels = self._levels(maps[:3])  # the fourth is of masks
        read = self._best_label if self.reading.one_label else self._best_scores
        found = [read(level, image_size) for level in levels]
        boxes, scores, labels, counts = (torch.cat([level[i] for level, _ in found]) for i in range(4))
        total = torch.stack([level.total for level, _ in found]).sum()
        max_per_img = None if self.reading.one_label else self.cfg.max_per_img
        kept = keep_best(Candidates(boxes, scores, labels, counts, total), self.cfg.nms, max_per_img)
        masks: tuple[Tensor, ...] = ()
        if self.with_mask:
            priors, kernels = (
                torch.cat([getattr(level, name)[rows] for level, (_, rows) in zip(levels, found)])[kept.index]
                for name in ('priors', 'kernels')
            )
            masks = (dynamic_masks(self.head, maps[3], kernels, priors),)
        return (*kept[:3], *masks, kept.left_out)

    def _levels(self, maps: Sequence[Sequence[Tensor]]) -> list[Level]:
        found = []
        for i, (scores, deltas, *others) in enumerate(zip(*maps)):
            priors = getattr(self, f'priors{i}')
            scores, deltas, *others = (
                level[0].permute(1, 2, 0).reshape(priors.shape[0], -1) for level in (scores, deltas, *others)
            )
            stride = self.head.prior_generator.strides[i][0]
            kernels = others[0] if self.with_mask else None
            factors = others[0][:, 0].sigmoid() if others and not self.with_mask else None
            found.append(Level(scores, deltas, factors, kernels, priors, stride))
        return found

    def _best_scores(self, level: Level, image_size: Tensor) -> tuple[Candidates, Tensor]:
        """The best scores of a level, and their rows; a factor, as centre-ness, counts after the threshold."""
        cfg, head = self.cfg, self.head
        scores = level.scores
        if not self.reading.is_probability:
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]
        num_classes = scores.shape[1]
        scores = scores.reshape(-1)
        threshold = cfg.get('score_thr', 0)
        kept = cfg.nms_pre if level.factors is not None else min(cfg.nms_pre, MAX_CANDIDATES)
        total = (scores > threshold).sum().clamp(max=cfg.nms_pre)
        scores, index = scores.topk(min(kept, scores.numel()))
        labels, rows = index % num_classes, torch.div(index, num_classes, rounding_mode='floor')
        counts = scores > threshold
        if level.factors is not None:
            scores = scores * level.factors[rows]
        boxes = self.reading.decode(head, level.priors[rows], level.deltas[rows], level.stride)
        if self.reading.clips and getattr(head.bbox_coder, 'clip_border', True):
            boxes = clip(boxes, image_size)
        if cfg.get('min_bbox_size', -1) >= 0:
            is_large = ((boxes[:, 2:] - boxes[:, :2]) > cfg.min_bbox_size).all(1)
            total = total - (counts & ~is_large).sum()
            counts = counts & is_large
        return Candidates(boxes, scores, labels, counts, total), rows

    def _best_label(self, level: Level, image_size: Tensor) -> tuple[Candidates, Tensor]:
        """Every prior of a level with its best class, and all rows."""
        assert level.factors is not None
        scores, labels = level.scores.sigmoid().max(1)
        scores = scores * level.factors
        counts = scores >= self.cfg.score_thr
        boxes = self.reading.decode(self.head, level.priors, level.deltas, level.stride)
        return Candidates(boxes, scores, labels, counts, counts.sum()), torch.arange(len(scores))


def sample_shifted(maps: Tensor, offset: Tensor) -> Tensor:
    """Reads each channel of maps (1, C, H, W) at places that are shifted by offset (1, 2 * C, H, W), vertical first.

    Zero outside, bilinear: what TOOD computes with a deformable convolution of one tap.
    """
    import torch.nn.functional as F

    _, channels, height, width = maps.shape
    shifts = offset.reshape(channels, 2, height, width)
    rows = torch.arange(height, dtype=maps.dtype)[:, None] + shifts[:, 0]
    columns = torch.arange(width, dtype=maps.dtype) + shifts[:, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    found = F.grid_sample(maps.transpose(0, 1), grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    return found.transpose(0, 1)


def dynamic_masks(head: nn.Module, maps: Tensor, kernels: Tensor, priors: Tensor) -> Tensor:
    """What RTMDet-Ins makes of maps (1, C, h, w) by a small network of each object: logits (N, h, w).

    As products of matrices: convolutions whose kernels are not constants are not known to every runtime.

    Args:
        head (nn.Module): Of MMDetection.
        maps (Tensor): Shared by the objects.
        kernels (Tensor): Weights and biases of the objects' networks (N, P).
        priors (Tensor): The objects' places and strides (N, 4).
    """
    count, (height, width) = kernels.shape[0], maps.shape[-2:]
    places = head.prior_generator.single_level_grid_priors((height, width), level_idx=0, device='cpu')
    relative = (priors[:, None, :2] - places) / (priors[:, None, 2:3] * 8)
    x = torch.cat([relative.transpose(1, 2), maps.flatten(2).expand(count, -1, -1)], 1)
    layers = kernels.split([*head.weight_nums, *head.bias_nums], 1)
    middle = len(head.weight_nums)
    for i, (weight, bias) in enumerate(zip(layers[:middle], layers[middle:])):
        x = weight.reshape(count, bias.shape[1], -1) @ x + bias[:, :, None]
        x = x.relu() if i < middle - 1 else x
    return x.reshape(count, height, width)


def check_one_stage(model: nn.Module) -> Model:
    """The kind of a detector with a dense head.

    Raises:
        UserError: If :class:`OneStageForm` does not repeat its work.
    """
    from mmdet.models.detectors import SingleStageDetector

    head: Any = getattr(model, 'bbox_head', None)
    cfg = model.test_cfg
    kinds = of_form('dense')
    expect(head, 'head', *(name for kind in kinds for name in kind.heads))
    (kind,) = (kind for kind in kinds if matches(head, *kind.heads))
    for name in ('predict', 'extract_feat'):
        if getattr(type(model), name) is not getattr(SingleStageDetector, name):
            raise UserError(f'{type(model).__name__} cannot be exported: it has a {name}() of its own')
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        raise UserError('a loss with its own activation cannot be exported')
    if getattr(head, 'num_dcn', 0):
        raise UserError(f'{kind.name} with num_dcn={head.num_dcn}: deformable convolutions cannot be exported')
    reading = READINGS[kind.reading]
    if hasattr(head, 'bbox_coder'):
        expect(head.bbox_coder, 'box coder', 'DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder')
    if reading.one_label:
        if 'score_thr' not in cfg or 'max_per_img' in cfg:
            raise UserError(f'test_cfg needs score_thr, and no max_per_img, which {kind.name} ignores')
    else:
        if cfg.get('nms_pre', -1) <= 0 or cfg.get('max_per_img', -1) <= 0:
            raise UserError('test_cfg.nms_pre and test_cfg.max_per_img must be numbers above 0')
        if cfg.get('min_bbox_size', 0) > 0:
            raise UserError('test_cfg.min_bbox_size above 0, in pixels of the whole image, cannot be exported')
    check_nms('test_cfg', cfg, soft=not reading.one_label)
    return kind
