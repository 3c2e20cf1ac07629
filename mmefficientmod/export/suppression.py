"""Non-maximum suppression with a known number of rows: the last step of most detectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils import UserError

MAX_CANDIDATES = 4000  # of the last NMS; more than enough but for the densest images, see `Detections.left_out`
MAX_ROWS = 1000  # of detectors without max_per_img


class Candidates(NamedTuple):
    """Boxes before the last NMS."""

    boxes: Tensor  # (K, 4)
    scores: Tensor  # (K,)
    labels: Tensor  # (K,)
    counts: Tensor  # (K,) bool: whether the box passes the threshold
    total: Tensor  # (): the boxes that pass, also those that are not among these


class Kept(NamedTuple):
    """The detections after NMS."""

    boxes: Tensor  # (N, 4)
    scores: Tensor  # (N,), 0 in rows that are not used
    labels: Tensor  # (N,)
    left_out: Tensor  # (): the candidates that could have mattered, but were not looked at
    index: Tensor  # (N,): which of the candidates they are


def keep_best(candidates: Candidates, nms: Mapping[str, Any], max_per_img: int | None) -> Kept:
    """The detections after NMS.

    NMS goes from the best candidate down, so that those beyond :data:`MAX_CANDIDATES` change nothing where enough
    detections are found before them; ``left_out`` counts them where that is not so.

    Args:
        candidates (Candidates): From which to choose.
        nms (Mapping): Settings that :func:`check_nms` let pass.
        max_per_img (int, optional): N, if there are as many candidates. Defaults to :data:`MAX_ROWS`.
    """
    boxes, scores, labels, counts, total = candidates
    ranks, seen = torch.where(counts, scores, -1.0).topk(min(MAX_CANDIDATES, scores.shape[0]))
    boxes, labels, counts = boxes[seen], labels[seen], ranks >= 0
    groups = torch.zeros_like(ranks) if nms.get('class_agnostic') else labels.float()
    cut = total - counts.sum()
    if nms.get('type') == 'soft_nms':
        assert max_per_img is not None  # see check_nms
        kept, index = soft_picks(move_apart(boxes, groups, counts), ranks, nms, min(max_per_img, len(ranks)))
        left_out = cut * (kept[-1] <= ranks.min())  # candidates with scores below these would not be picked
        is_kept = kept >= 0
        return Kept(boxes[index] * is_kept[:, None], kept * is_kept, labels[index] * is_kept, left_out, seen[index])
    ranks = survivors(boxes, ranks, groups, counts, nms['iou_threshold'])
    found = (ranks >= 0).sum()
    if max_per_img is None:
        max_per_img = MAX_ROWS
        left_out = cut + (found - MAX_ROWS).clamp(min=0)
    else:
        left_out = cut * (found < max_per_img)
    kept, index = ranks.topk(min(max_per_img, ranks.shape[0]))
    is_kept = kept >= 0
    return Kept(boxes[index] * is_kept[:, None], kept * is_kept, labels[index] * is_kept, left_out, seen[index])


def survivors(boxes: Tensor, scores: Tensor, groups: Tensor, counts: Tensor, threshold: float) -> Tensor:
    """Scores (N,) after greedy NMS within each group; -1 in rows that are suppressed or do not count."""
    from torchvision.ops import nms

    kept = nms(move_apart(boxes, groups, counts), torch.where(counts, scores, -1.0), threshold)
    is_kept = torch.zeros_like(counts).index_fill(0, kept, True)
    return torch.where(is_kept & counts, scores, -1.0)


def move_apart(boxes: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """Boxes (N, 4) with each group at a place of its own, as MMCV does; what does not count lies apart from all."""
    groups = torch.where(counts, groups, -1.0)
    return boxes * counts[:, None] + (groups * ((boxes * counts[:, None]).max() + 1))[:, None]


def soft_picks(boxes: Tensor, scores: Tensor, nms: Mapping[str, Any], number: int) -> tuple[Tensor, Tensor]:
    """The scores (number,) and rows (number,) that Soft-NMS picks first; where there are no more, the score is below 0.

    Each pick lowers the scores of the boxes that overlap it. The rounds are written out: their number is fixed.

    Args:
        boxes (Tensor): (N, 4).
        scores (Tensor): (N,), below 0 where a box does not count.
        nms (Mapping): MMCV's settings.
        number (int): Of picks.
    """
    from torchvision.ops import box_iou

    method, picks, rows = nms.get('method', 'linear'), [], []
    for _ in range(number):
        row = scores.argmax()[None]
        picks.append(scores[row])
        rows.append(row)
        overlaps = box_iou(boxes[row], boxes)[0]
        if method == 'gaussian':
            factors = torch.exp(-(overlaps**2) / nms.get('sigma', 0.5))
        else:
            lowered = 1 - overlaps if method == 'linear' else torch.zeros_like(overlaps)
            factors = torch.where(overlaps >= nms['iou_threshold'], lowered, 1.0)
        scores = torch.where(scores > 0, scores * factors, scores)
        scores = torch.where(scores < nms.get('min_score', 1e-3), -1.0, scores).index_fill(0, row, -1.0)
    return torch.cat(picks), torch.cat(rows)


def clip(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Boxes (N, 4) within an image of this height and width (2,)."""
    bound = image_size.flip(0).repeat(2)  # x, y, x, y
    return boxes.clamp(min=0).minimum(bound)


def check_nms(place: str, cfg: Mapping[str, Any] | None, soft: bool = False) -> None:
    """Raises UserError for another NMS than the plain one or, where the number of boxes is bounded, Soft-NMS."""
    nms = (cfg or {}).get('nms') or {}
    known = {'type', 'iou_threshold', 'split_thr', 'class_agnostic'}
    kinds = ['nms']
    if soft:
        kinds.append('soft_nms')
        known |= {'sigma', 'min_score', 'method'} if nms.get('type') == 'soft_nms' else set()
    if nms.get('type', 'nms') not in kinds or 'iou_threshold' not in nms or set(nms) - known:
        raise UserError(
            f'{place}.nms={dict(nms)} cannot be exported: its type must be {" or ".join(kinds)}, with iou_threshold, '
            f'without other settings than {", ".join(sorted(known))}'
        )
