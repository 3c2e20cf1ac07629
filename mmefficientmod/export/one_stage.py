"""Exportable form of RetinaNet and FCOS, from pixels to a fixed number of detections."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..utils import UserError
from .detector import check_nms, clip, survivors
from .forms import Preprocess, deployed


class OneStageForm(nn.Module):
    """RetinaNet or FCOS of MMDetection on one image of a fixed size.

    image (1, 3, H, W) pixels, image_size (2,) -> boxes (N, 4), scores (N,), labels (N,), as
    :mod:`mmefficientmod.export.description` says. NMS sees every candidate that MMDetection's sees.

    Args:
        model (nn.Module): The detector.
        size (tuple[int, int]): H and W.

    Raises:
        UserError: If the detector has a part whose work this form does not know.
    """

    task = 'detection'
    with_mask = False
    output_names = ['boxes', 'scores', 'labels']

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        check_one_stage(model)
        self.preprocess = Preprocess(model.data_preprocessor)
        self.backbone = deployed(model.backbone)
        self.neck = copy.deepcopy(model.neck) if model.with_neck else nn.Identity()
        self.head = copy.deepcopy(model.bbox_head)
        self.cfg = model.test_cfg
        with torch.no_grad():
            maps = self.head(self._pyramid(torch.zeros(1, 3, *size)))[0]
        priors = self.head.prior_generator.grid_priors([m.shape[-2:] for m in maps], device='cpu')
        for i, level in enumerate(priors):
            self.register_buffer(f'priors{i}', level.float())

    def _pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(self.preprocess(image)))

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cfg, num_classes = self.cfg, self.head.num_classes
        threshold = cfg.get('score_thr', 0)
        all_scores, all_labels, all_boxes, all_counts = [], [], [], []
        for i, maps in enumerate(zip(*self.head(self._pyramid(image)))):
            scores, deltas, *factors = (m[0].permute(1, 2, 0) for m in maps)
            scores, index = scores.reshape(-1).sigmoid().topk(min(cfg.nms_pre, scores.numel()))
            labels, rows = index % num_classes, index // num_classes
            all_counts.append(scores > threshold)
            if factors:  # the centre-ness of FCOS, which counts after the threshold
                scores = scores * factors[0].reshape(-1).sigmoid()[rows]
            deltas = deltas.reshape(-1, self.head.bbox_coder.encode_size)[rows]
            boxes = self.head.bbox_coder.decode(getattr(self, f'priors{i}')[rows], deltas)
            all_scores.append(scores)
            all_labels.append(labels)
            all_boxes.append(clip(boxes, image_size))
        scores, labels, boxes = torch.cat(all_scores), torch.cat(all_labels), torch.cat(all_boxes)
        counts = torch.cat(all_counts)
        if cfg.get('min_bbox_size', -1) >= 0:
            counts = counts & ((boxes[:, 2:] - boxes[:, :2]) > cfg.min_bbox_size).all(1)
        ranks = survivors(boxes, scores, labels.float(), counts, cfg.nms.iou_threshold)
        kept, index = ranks.topk(min(cfg.max_per_img, ranks.shape[0]))
        is_kept = kept >= 0
        return boxes[index] * is_kept[:, None], kept * is_kept, labels[index] * is_kept


def check_one_stage(model: nn.Module) -> None:
    """Raises UserError for a detector that :class:`OneStageForm` does not repeat."""
    from mmdet.models.dense_heads import FCOSHead, RetinaHead

    head = model.bbox_head
    if type(head) not in (RetinaHead, FCOSHead):
        raise UserError(
            f'{type(head).__name__} cannot be exported: one-stage detectors are RetinaNet and FCOS; --part backbone '
            'exports the backbone of any detector'
        )
    if not head.use_sigmoid_cls or getattr(head.loss_cls, 'custom_cls_channels', False):
        raise UserError('a head without sigmoid, or a loss with its own activation, cannot be exported')
    if model.test_cfg.get('nms_pre', -1) <= 0:
        raise UserError('test_cfg.nms_pre must be a number of candidates a level')
    check_nms('test_cfg', model.test_cfg)
