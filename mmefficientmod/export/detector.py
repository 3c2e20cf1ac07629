"""Exportable form of a two-stage detector, from pixels to a fixed number of detections: every shape is known.

It computes what MMDetection computes. Where MMDetection selects rows, whose number depends on the image, this form
keeps all rows and marks those that count.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..utils import UserError
from .forms import Preprocess, deployed

MAX_CANDIDATES = 4000  # of the last NMS; more than enough but for the densest images, see `Detections.left_out`


class DetectorForm(nn.Module):
    """Faster or Mask R-CNN of MMDetection on one image of a fixed size.

    image (1, 3, H, W) pixels, image_size (2,) height and width of the image in it -> boxes (N, 4), scores (N,),
    labels (N,), for Mask R-CNN masks (N, 28, 28), and left_out (), as :mod:`mmefficientmod.export.description` says.

    Args:
        model (nn.Module): The detector.
        size (tuple[int, int]): H and W.

    Raises:
        UserError: If the detector has a part whose work this form does not know.
    """

    task = 'detection'

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        check_supported(model)
        self.preprocess = Preprocess(model.data_preprocessor)
        self.backbone = deployed(model.backbone)
        self.neck = copy.deepcopy(model.neck) if model.with_neck else nn.Identity()
        self.rpn_head, self.roi_head = copy.deepcopy(model.rpn_head), copy.deepcopy(model.roi_head)
        self.rpn_cfg, self.rcnn_cfg = model.test_cfg.rpn, model.test_cfg.rcnn
        with torch.no_grad():
            maps = self.rpn_head(self._pyramid(torch.zeros(1, 3, *size)))[0]
        anchors = self.rpn_head.prior_generator.grid_priors([m.shape[-2:] for m in maps], device='cpu')
        for i, level in enumerate(anchors):
            self.register_buffer(f'anchors{i}', level.float())
        self.output_names = ['boxes', 'scores', 'labels', *(['masks'] if self.with_mask else []), 'left_out']

    @property
    def with_mask(self) -> bool:
        return self.roi_head.with_mask

    def _pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(self.preprocess(image)))

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        levels = self._pyramid(image)
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
            all_boxes.append(clip(self.rpn_head.bbox_coder.decode(anchors, deltas), image_size))
            all_levels.append(torch.full_like(scores, i))
        scores, boxes, ids = torch.cat(all_scores), torch.cat(all_boxes), torch.cat(all_levels)
        counts = torch.ones_like(scores, dtype=torch.bool)
        if cfg.get('min_bbox_size', -1) >= 0:
            counts = ((boxes[:, 2:] - boxes[:, :2]) > cfg.min_bbox_size).all(1)
        ranks = survivors(boxes, scores, ids, counts, cfg.nms.iou_threshold)
        scores, index = ranks.topk(min(cfg.max_per_img, scores.shape[0]))
        counts = scores >= 0
        return boxes[index] * counts[:, None], counts

    def _classify(
        self, levels: tuple[Tensor, ...], proposals: Tensor, is_proposal: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The detections, boxes (N, 4), scores (N,), labels (N,), and the number of candidates that are left out ()."""
        cfg, head = self.rcnn_cfg, self.roi_head.bbox_head
        features = extract(self.roi_head.bbox_roi_extractor, levels, proposals)
        if self.roi_head.with_shared_head:
            features = self.roi_head.shared_head(features)
        logits, deltas = head(features)
        num_classes = head.num_classes
        scores = (logits.softmax(-1)[:, :num_classes] * is_proposal[:, None]).flatten()  # (P * classes,)
        top, index = scores.topk(min(MAX_CANDIDATES, scores.shape[0]))
        labels, rows = index % num_classes, index // num_classes
        deltas = deltas.unflatten(-1, (-1, 4))
        deltas = deltas[rows, torch.zeros_like(labels) if head.reg_class_agnostic else labels]
        boxes = clip(head.bbox_coder.decode(proposals[rows], deltas), image_size)
        counts = top > cfg.score_thr
        ranks = survivors(boxes, top, labels.float(), counts, cfg.nms.iou_threshold)
        kept, index = ranks.topk(min(cfg.max_per_img, top.shape[0]))
        is_kept = kept >= 0
        # NMS goes from the best candidate down: those cut off change nothing where enough were found before them.
        left_out = ((scores > cfg.score_thr).sum() - counts.sum()) * ((ranks >= 0).sum() < cfg.max_per_img)
        return boxes[index] * is_kept[:, None], kept * is_kept, labels[index] * is_kept, left_out

    def _segment(self, levels: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """The chance of each cell of each box to be object (N, 28, 28)."""
        head = self.roi_head.mask_head
        masks = head(extract(self.roi_head.mask_roi_extractor, levels, boxes))
        if head.class_agnostic:
            return masks[:, 0].sigmoid()
        index = labels[:, None, None, None].expand(-1, 1, *masks.shape[-2:])
        return masks.gather(1, index)[:, 0].sigmoid()


def clip(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Boxes (N, 4) within a image of this height and width (2,)."""
    bound = image_size.flip(0).repeat(2)  # x, y, x, y
    return boxes.clamp(min=0).minimum(bound)


def survivors(boxes: Tensor, scores: Tensor, groups: Tensor, counts: Tensor, threshold: float) -> Tensor:
    """Scores (N,) after greedy NMS within each group; -1 in rows that are suppressed or do not count.

    MMCV's way: each group is moved to a place of its own. Rows that do not count lie apart from all others.
    """
    from torchvision.ops import nms

    groups = torch.where(counts, groups, -1.0)
    moved = boxes * counts[:, None] + (groups * ((boxes * counts[:, None]).max() + 1))[:, None]
    kept = nms(moved, torch.where(counts, scores, -1.0), threshold)
    is_kept = torch.zeros_like(counts).index_fill(0, kept, True)
    return torch.where(is_kept & counts, scores, -1.0)


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
    from mmcv.ops import RoIAlign
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.models.roi_heads import FCNMaskHead, SingleRoIExtractor, StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead, ConvFCBBoxHead
    from mmdet.models.task_modules import DeltaXYWHBBoxCoder

    def expect(part: object, *kinds: type) -> None:
        if not any(type(part) is kind or (kind in type(part).__bases__ and not _overrides(part)) for kind in kinds):
            names = ' or '.join(kind.__name__ for kind in kinds)
            raise UserError(
                f'{type(part).__name__} cannot be exported: detectors are exported with {names} in its place '
                '(Faster and Mask R-CNN); --part backbone exports the backbone of any detector'
            )

    if not isinstance(model, TwoStageDetector):
        raise UserError(
            f'{type(model).__name__} cannot be exported whole: detectors are Faster and Mask R-CNN, RetinaNet, FCOS; '
            '--part backbone exports the backbone of any detector'
        )
    expect(model.rpn_head, RPNHead)
    expect(model.roi_head, StandardRoIHead)
    head = model.roi_head
    expect(head.bbox_head, BBoxHead, ConvFCBBoxHead)
    expect(head.bbox_roi_extractor, SingleRoIExtractor)
    extractors, coders = [head.bbox_roi_extractor], [model.rpn_head.bbox_coder, head.bbox_head.bbox_coder]
    if head.with_mask:
        expect(head.mask_head, FCNMaskHead)
        expect(head.mask_roi_extractor, SingleRoIExtractor)
        extractors.append(head.mask_roi_extractor)
    for coder in coders:
        expect(coder, DeltaXYWHBBoxCoder)
    for extractor in extractors:
        for layer in extractor.roi_layers:
            expect(layer, RoIAlign)
            if layer.pool_mode != 'avg':
                raise UserError(f'RoIAlign with pool_mode={layer.pool_mode!r} cannot be exported: it must be avg')
    check_nms('test_cfg.rpn', model.test_cfg.rpn)
    check_nms('test_cfg.rcnn', model.test_cfg.rcnn)
    if model.rpn_head.cls_out_channels != 1 or not model.rpn_head.use_sigmoid_cls or head.bbox_head.custom_cls_channels:
        raise UserError('an RPN with softmax, or a loss with its own activation, cannot be exported')


def check_nms(place: str, cfg: Mapping[str, Any]) -> None:
    """Raises UserError for another NMS than the plain one."""
    nms = cfg['nms']
    if nms.get('type', 'nms') != 'nms' or set(nms) - {'type', 'iou_threshold', 'split_thr'}:
        raise UserError(f'{place}.nms={dict(nms)} cannot be exported: it must be plain nms')


def _overrides(part: object) -> bool:
    """Whether a class has methods of its own besides its constructor."""
    return any(callable(value) and not name.startswith('__') for name, value in vars(type(part)).items())
