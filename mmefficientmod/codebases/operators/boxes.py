"""Overlaps and suppression of boxes; ``mmcv/ops/nms.py`` and ``bbox.py`` call these functions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .common import torchvision_operators, widen

__all__ = ['bbox_overlaps', 'nms', 'nms_match', 'softnms']


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Returns the indices of the kept boxes, highest score first.

    Args:
        boxes (Tensor): Corners of shape (N, 4).
        scores (Tensor): Shape (N,).
        iou_threshold (float): A box that overlaps a kept one by more than this is dropped.
        offset (int): 1 if a box ends one pixel after its second corner, else 0.
    """
    boxes, scores = widen(boxes, scores)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), 1)
    threshold = float(np.float32(iou_threshold))  # MMCV compares in single precision
    return torchvision_operators().nms(boxes, scores, threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lowers the scores of boxes that overlap one of a higher score, and writes boxes with scores to ``dets``.

    Args:
        boxes (Tensor): Corners of shape (N, 4), on the CPU as everything here.
        scores (Tensor): Shape (N,).
        dets (Tensor): Output of shape (N, 5), the first rows of which are filled.
        iou_threshold (float): From which overlap on a score is lowered, with methods 0 and 1.
        sigma (float): Width of the Gaussian of method 2.
        min_score (float): Boxes whose lowered score is below it are dropped.
        method (int): 0 sets the score to 0, 1 lowers it linearly, 2 with a Gaussian.
        offset (int): 1 if a box ends one pixel after its second corner, else 0.

    Returns:
        Tensor: Indices of the rows of ``dets`` in ``boxes``.
    """
    wide_boxes, wide_scores = (tensor.detach().numpy() for tensor in widen(boxes, scores))
    left = np.concatenate((wide_boxes, wide_scores[:, None]), 1)
    indices = np.arange(len(left))
    kept: list[int] = []
    while len(left):
        best = int(left[:, 4].argmax())
        chosen = left[best].copy()
        dets[len(kept)] = torch.from_numpy(chosen)
        kept.append(int(indices[best]))
        # boxes change places as in MMCV: of equal scores, the first one comes next
        left[best], indices[best] = left[0], indices[0]
        left, indices = left[1:], indices[1:]
        overlaps = _overlaps(chosen, left, offset)
        if method == 2:
            factors = np.exp(-(overlaps**2) / sigma)
        else:
            factors = np.where(overlaps >= iou_threshold, 1 - overlaps if method else 0, 1)
        left[:, 4] *= factors.astype(left.dtype)
        stays = ~(left[:, 4] < min_score)  # as MMCV treats nan
        number = int(stays.sum())
        holes, fillers = np.flatnonzero(~stays[:number]), number + np.flatnonzero(stays[number:])[::-1]
        left[holes], indices[holes] = left[fillers], indices[fillers]
        left, indices = left[:number], indices[:number]
    return torch.tensor(kept, dtype=torch.long)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups boxes with the one of the highest score that they overlap.

    Args:
        dets (Tensor): Corners and score, shape (N, 5), on the CPU.
        iou_threshold (float): The overlap from which on a box belongs to a group.

    Returns:
        list[list[int]]: Indices, highest score first in each group and among the groups.
    """
    left = widen(dets)[0].detach()
    indices = left[:, 4].sort(descending=True, stable=True).indices.numpy()
    left = left.numpy()[indices]
    groups = []
    while len(left):
        joins = _overlaps(left[0], left, 0) >= iou_threshold
        joins[0] = True  # a box without an area has no overlap, not even with itself
        groups.append(indices[joins].tolist())
        left, indices = left[~joins], indices[~joins]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Writes the overlaps of boxes to ``ious``.

    Args:
        bboxes1 (Tensor): Corners of shape (M, 4).
        bboxes2 (Tensor): Corners of shape (N, 4), with M == N if ``aligned``.
        ious (Tensor): Output of shape (M, N), or (M,) if ``aligned``.
        mode (int): 0 divides the intersection by the union, 1 by the area of the first box.
        aligned (bool): Compare each box with its counterpart, in place of all others.
        offset (int): 1 if a box ends one pixel after its second corner, else 0.
    """
    first, second = widen(bboxes1, bboxes2)
    if not aligned:
        first = first[:, None]
    sides = torch.min(first[..., 2:], second[..., 2:]) - torch.max(first[..., :2], second[..., :2]) + offset
    intersection = sides.clamp(min=0).prod(-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (first, second))
    ious.copy_(intersection / (area1 if mode else area1 + area2 - intersection))


def _overlaps(box: np.ndarray, boxes: np.ndarray, offset: int) -> np.ndarray:
    """Intersection over union of one box with each of (N, 4) or more columns; 0 where both have no area."""
    sides = np.minimum(box[2:4], boxes[:, 2:4]) - np.maximum(box[:2], boxes[:, :2]) + offset
    intersection = np.maximum(sides, 0).prod(1)
    areas = (boxes[:, 2:4] - boxes[:, :2] + offset).prod(1)
    union = (box[2:4] - box[:2] + offset).prod() + areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)
