"""Exportable form of a two-stage detector, from pixels to a fixed number of detections: every shape is known.

It computes what MMDetection computes. Where MMDetection selects rows, whose number depends on the image, this form
keeps all rows and marks those that count.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..utils import UserError
from .forms import PyramidForm
from .supported import expect, of_form
from .suppression import MAX_CANDIDATES, Candidates, check_nms, clip, keep_best, survivors

SHARED_HEADS = ('Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead')


class DetectorForm(PyramidForm):
    """Faster or Mask R-CNN of MMDetection, also as a cascade, on one image of a fixed size.

    image (1, 3, H, W) pixels, image_size (2,) height and width of the image in it -> boxes (N, 4), scores (N,),
    labels (N,), with a mask head masks (N, 28, 28), and left_out (), as :mod:`mmefficientmod.export.description` says.

    Args:
        model (nn.Module): The detector.
        size (tuple[int, int]): H and W.

    Raises:
        UserError: If the detector has a part whose work this form does not know.
    """

    task = 'detection'

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        check_supported(model)
        super().__init__(model)
        self.rpn_head, self.roi_head = copy.deepcopy(model.rpn_head), copy.deepcopy(model.roi_head)
        self.rpn_cfg, self.rcnn_cfg = model.test_cfg.rpn, model.test_cfg.rcnn
        with torch.no_grad():
            maps = self.rpn_head(self.pyramid(torch.zeros(1, 3, *size)))[0]
        anchors = self.rpn_head.prior_generator.grid_priors([m.shape[-2:] for m in maps], device='cpu')
        for i, level in enumerate(anchors):
            self.register_buffer(f'anchors{i}', level.float())
        self.output_names = ['boxes', 'scores', 'labels', *(['masks'] if self.with_mask else []), 'left_out']

    @property
    def with_mask(self) -> bool:
        return self.roi_head.with_mask

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        levels = self.pyramid(image)
        proposals, is_proposal = self._propose(levels, image_size)
        boxes, scores, labels, left_out = self._classify(levels, proposals, is_proposal, image_size)
        masks = (self._segment(levels, boxes, labels),) if self.with_mask else ()
        return (boxes, scores, labels, *masks, left_out)

    def _propose(self, levels: tuple[Tensor, ...], image_size: Tensor) -> tuple[Tensor, Tensor]:
        """The region proposals (P, 4), and which of them count (P,)."""
        cfg = self.rpn_cfg
        all_scores, all_boxes, all_levels = [], [], []
        for i, (logits, deltas) in enumerate(zip(*self.rpn_head(levels))):
            scores = logits[0].permute(1, 2, 0).reshape(-1).sigmoid()
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            anchors = getattr(self, f'anchors{i}')
            if 0 < cfg.get('nms_pre', -1) < scores.shape[0]:
                scores, index = scores.topk(cfg.nms_pre)
                deltas, anchors = deltas[index], anchors[index]
            all_scores.append(scores)
            boxes = self.rpn_head.bbox_coder.decode(anchors, deltas)
            all_boxes.append(clip(boxes, image_size) if self.rpn_head.bbox_coder.clip_border else boxes)
            all_levels.append(torch.full_like(scores, i))
        scores, boxes, ids = torch.cat(all_scores), torch.cat(all_boxes), torch.cat(all_levels)
        counts = torch.ones_like(scores, dtype=torch.bool)
        if cfg.get('min_bbox_size', -1) >= 0:
            counts = ((boxes[:, 2:] - boxes[:, :2]) > cfg.min_bbox_size).all(1)
        groups = torch.zeros_like(ids) if cfg.nms.get('class_agnostic') else ids
        ranks = survivors(boxes, scores, groups, counts, cfg.nms.iou_threshold)
        scores, index = ranks.topk(min(cfg.max_per_img, scores.shape[0]))
        counts = scores >= 0
        return boxes[index] * counts[:, None], counts

    def _classify(
        self, levels: tuple[Tensor, ...], proposals: Tensor, is_proposal: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The detections, boxes (N, 4), scores (N,), labels (N,), and the number of candidates that are left out ()."""
        cfg, roi_head = self.rcnn_cfg, self.roi_head
        stages = list(zip(as_list(roi_head.bbox_roi_extractor), as_list(roi_head.bbox_head)))
        all_logits = []
        for i, (extractor, head) in enumerate(stages):
            features = extract(extractor, levels, proposals)
            if roi_head.with_shared_head:
                features = roi_head.shared_head(features)
            logits, deltas = head(features)
            all_logits.append(logits)
            if i < len(stages) - 1:
                rows = torch.arange(proposals.shape[0])
                proposals = regress(head, proposals, deltas, rows, logits[:, :-1].argmax(1), image_size)
        num_classes = head.num_classes
        scores = (torch.stack(all_logits).mean(0).softmax(-1)[:, :num_classes] * is_proposal[:, None]).flatten()
        top, index = scores.topk(min(MAX_CANDIDATES, scores.shape[0]))  # of (P * classes,)
        labels, rows = index % num_classes, torch.div(index, num_classes, rounding_mode='floor')
        boxes = regress(head, proposals, deltas, rows, labels, image_size)
        threshold = cfg.score_thr
        candidates = Candidates(boxes, top, labels, top > threshold, (scores > threshold).sum())
        boxes, scores, labels, left_out, _ = keep_best(candidates, cfg.nms, cfg.max_per_img)
        return boxes, scores, labels, left_out

    def _segment(self, levels: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """The chance of each cell of each box to be object (N, 28, 28), the mean of the stages."""
        found = []
        for extractor, head in zip(as_list(self.roi_head.mask_roi_extractor), as_list(self.roi_head.mask_head)):
            masks = head(extract(extractor, levels, boxes))
            index = torch.zeros_like(labels) if head.class_agnostic else labels
            index = index[:, None, None, None].expand(-1, 1, *masks.shape[-2:])
            found.append(masks.gather(1, index)[:, 0].sigmoid())
        return torch.stack(found).mean(0)


def as_list(part: nn.Module) -> list[nn.Module]:
    """The parts of all stages of a cascade, or the only one."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def regress(
    head: nn.Module, proposals: Tensor, deltas: Tensor, rows: Tensor, labels: Tensor, image_size: Tensor
) -> Tensor:
    """The boxes (K, 4) of some rows and labels (K,), from proposals (P, 4) and a box head's deltas (P, n * 4)."""
    deltas = deltas.unflatten(-1, (-1, 4))
    boxes = head.bbox_coder.decode(
        proposals[rows], deltas[rows, torch.zeros_like(labels) if head.reg_class_agnostic else labels]
    )
    return clip(boxes, image_size) if head.bbox_coder.clip_border else boxes


def extract(extractor: nn.Module, levels: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """RoIAlign of each box (N, 4) on its own level: (N, C, size, size).

    Each level sees all boxes, those of other levels as boxes without an area, which cost nothing.
    """
    from torchvision.ops import roi_align

    num_levels = len(extractor.roi_layers)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    places = extractor.map_roi_levels(rois, num_levels)
    total: Tensor | None = None
    for i, (layer, level) in enumerate(zip(extractor.roi_layers, levels)):
        here = (places == i)[:, None]
        features = roi_align(
            level,
            rois * here,
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        total = features if total is None else torch.where(here[:, :, None, None], features, total)
    assert total is not None  # an extractor has one level or more
    return total


def check_supported(model: nn.Module) -> None:
    """Raises UserError for a detector with a part whose work :class:`DetectorForm` does not repeat."""
    from mmdet.models.detectors import TwoStageDetector

    if not isinstance(model, TwoStageDetector):
        raise UserError(
            f'{type(model).__name__} cannot be exported whole: --list shows the models; --part backbone exports the '
            'backbone of any detector'
        )
    for name in ('predict', 'extract_feat'):
        if getattr(type(model), name) is not getattr(TwoStageDetector, name):
            raise UserError(f'{type(model).__name__} cannot be exported: it has a {name}() of its own')
    head: Any = getattr(model, 'roi_head', None)
    expect(getattr(model, 'rpn_head', None), 'RPN', 'RPNHead')
    expect(head, 'RoI head', *(name for kind in of_form('two-stage') for name in kind.heads))
    box_heads, mask_heads = as_list(head.bbox_head), as_list(head.mask_head) if head.with_mask else []
    extractors = as_list(head.bbox_roi_extractor) + (as_list(head.mask_roi_extractor) if head.with_mask else [])
    for box_head in box_heads:
        expect(box_head, 'box head', 'BBoxHead', 'ConvFCBBoxHead', *SHARED_HEADS)
        if box_head.custom_cls_channels or box_head.custom_activation:
            raise UserError('a loss with its own activation cannot be exported')
        if not box_head.with_reg or not box_head.with_cls:
            raise UserError('a box head without classes or without boxes cannot be exported')
    for mask_head in mask_heads:
        expect(mask_head, 'mask head', 'FCNMaskHead')
    for coder in (model.rpn_head.bbox_coder, *(box_head.bbox_coder for box_head in box_heads)):
        expect(coder, 'box coder', 'DeltaXYWHBBoxCoder')
    for extractor in extractors:
        expect(extractor, 'RoI extractor', 'SingleRoIExtractor')
        for layer in extractor.roi_layers:
            expect(layer, 'RoI layer', 'RoIAlign')
            if layer.pool_mode != 'avg':
                raise UserError(f'RoIAlign with pool_mode={layer.pool_mode!r} cannot be exported: it must be avg')
    check_nms('test_cfg.rpn', model.test_cfg.rpn)
    if model.test_cfg.rpn.get('max_per_img', 0) <= 0:
        raise UserError('test_cfg.rpn.max_per_img must be a number above 0')
    check_nms('test_cfg.rcnn', model.test_cfg.rcnn, soft=True)
    if model.rpn_head.cls_out_channels != 1 or not model.rpn_head.use_sigmoid_cls:
        raise UserError('an RPN with softmax cannot be exported')
