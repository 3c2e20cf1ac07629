"""Agreement: of an exportable form with the library's own result, and of each file with the form."""

from __future__ import annotations

import copy
import math
import typing
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .description import FILE_LIMIT, Description
from .inputs import Sample, pad

CLASS_LIMIT = 1e-4  # share of pixels of another class
PROBABILITY_LIMIT = 1e-4
SCORE_LIMIT = 1e-3
IOU_LIMIT = 0.99  # of boxes and of masks
SIZES = ((1, 224, 224), (1, 320, 192), (2, 96, 160), (1, 333, 517), (3, 32, 32), (1, 65, 47))  # batch, height, width

Outputs = typing.Mapping[str, np.ndarray]


def generated_samples(description: Description, fill: Sequence[float]) -> list[Sample]:
    """Pictures that are made up: of several sizes, or of the fixed size with and without padding."""
    size = description.size
    if size['dynamic']:
        return [
            Sample(f'generated, {b} x {h} x {w}', _pictures(b, h, w, seed), (h, w))
            for seed, (b, h, w) in enumerate(SIZES)
        ]
    height, width, batch = size['height'], size['width'], size['batch']
    shapes = {'whole': (height, width)}
    if description.task == 'detection':
        shapes.update(wide=(height * 3 // 4, width), tall=(height, width // 2), small=(height // 2, width // 3))
    samples = [
        Sample(f'generated, {name} {h} x {w}', pad(_pictures(batch, h, w, seed), height, width, fill), (h, w))
        for seed, (name, (h, w)) in enumerate(shapes.items())
    ]
    empty = np.full((batch, 3, height, width), np.reshape(fill, (1, 3, 1, 1)), np.float32)
    return [*samples, Sample('one colour', empty, (height, width))]


def _pictures(batch: int, height: int, width: int, seed: int) -> np.ndarray:
    """Coloured patches with fine texture (B, 3, H, W), whole numbers from 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, max(height // 24, 2), max(width // 24, 2), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode='bicubic')
    texture = torch.rand(batch, 3, height, width, generator=generator)
    return (smooth * 215 + texture * 40).clamp(0, 255).round().numpy()


@torch.no_grad()
def library_result(model: nn.Module, task: str, sample: Sample) -> Outputs:
    """What the library itself makes of a sample, under the names of the form's outputs."""
    images = torch.from_numpy(sample.image)
    height, width = sample.image.shape[-2:]
    if task == 'backbone':
        preprocessor = copy.copy(model.data_preprocessor)
        preprocessor.pad_size_divisor = 1  # a backbone takes any size; what pads for its neck is not exported with it
        inputs = preprocessor(dict(inputs=list(images)))['inputs']
        return {f'level{i}': v.numpy() for i, v in zip(model.backbone.out_indices, model.backbone(inputs))}
    if task == 'classification':
        found = model.predict(model.data_preprocessor(dict(inputs=list(images)))['inputs'])
        return dict(scores=torch.stack([item.pred_score for item in found]).numpy())
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (height, width))
    if task == 'segmentation':
        from mmseg.structures import SegDataSample

        data = model.data_preprocessor(
            dict(inputs=list(images), data_samples=[SegDataSample(metainfo=dict(shapes)) for _ in images])
        )
        found = model.predict(data['inputs'], data['data_samples'])
        return dict(classes=torch.stack([item.pred_sem_seg.data[0] for item in found]).numpy())
    from mmdet.structures import DetDataSample

    shapes.update(img_shape=sample.picture, ori_shape=sample.picture)
    meta = dict(shapes, scale_factor=(1.0, 1.0))
    data = model.data_preprocessor(dict(inputs=list(images), data_samples=[DetDataSample(metainfo=dict(meta))]))
    data['data_samples'][0].set_metainfo(meta)  # the preprocessor takes the padding for picture
    found = model.predict(data['inputs'], data['data_samples'])[0].pred_instances
    result = dict(boxes=found.bboxes.numpy(), scores=found.scores.numpy(), labels=found.labels.numpy())
    if 'masks' in found:
        result['pasted'] = np.asarray(found.masks)
    return result


def compare(task: str, expected: Outputs, found: Outputs, sample: Sample, mask_thr: float | None = None) -> list[dict]:
    """The checks of one result: dicts with ``name``, ``figure``, ``limit`` and ``passed``.

    Where a value on either side is NaN or infinite, each figure is infinite: a comparison would pass NaN over.
    """
    with np.errstate(invalid='ignore'):
        checks = _compare(task, expected, found, sample, mask_thr)
    if is_finite(expected) and is_finite(found):
        return checks
    return [_check(check['name'], math.inf, check['limit']) for check in checks]


def is_finite(outputs: Outputs) -> bool:
    """Whether no value of a result is NaN or infinite."""
    return all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind == 'f')


def _compare(task: str, expected: Outputs, found: Outputs, sample: Sample, mask_thr: float | None) -> list[dict]:
    if task == 'segmentation':
        share = float((expected['classes'] != found['classes']).mean())
        return [_check('share of pixels of another class', share, CLASS_LIMIT)]
    if task == 'backbone':
        return [_check('largest difference of a level, as a share', level_difference(expected, found), FILE_LIMIT)]
    if task == 'classification':
        difference = float(np.abs(expected['scores'] - found['scores']).max())
        return [_check('largest difference of a probability', difference, PROBABILITY_LIMIT)]
    return compare_detections(_pasted(expected, sample, mask_thr), _pasted(found, sample, mask_thr), found)


def level_difference(expected: Outputs, found: Outputs) -> float:
    """The largest difference of any output of these, as a share of the largest value of that output.

    Infinite where shapes differ or a value is NaN or infinite.
    """
    if not is_finite(expected) or not is_finite(found):
        return math.inf
    shares = []
    for name, value in expected.items():
        if value.shape != found[name].shape:
            return math.inf
        shares.append(float(np.abs(value - found[name]).max() / max(np.abs(value).max(), 1e-12)))
    return max(shares)


def compare_detections(expected: Outputs, found: Outputs, raw: Outputs) -> list[dict]:
    """Matches each detection with one of the same label; see the limits above.

    Detections whose score is within the limit of the worst one that was kept may be missing where the number of
    detections is bounded: which of them are kept is then a matter of the last digit. So is the side of the threshold on
    which a mask's value lies that is as close to it: such pixels do not count, as one is much in a mask of thirty.
    """
    taken: set[int] = set()
    misses, worst_score, worst_box, worst_mask = 0, 0.0, 1.0, 1.0
    full = len(expected['scores']) == len(raw['scores'])
    edge = float(expected['scores'].min()) + SCORE_LIMIT if full and len(expected['scores']) else -1.0
    for i in np.argsort(-expected['scores']):
        fits = [
            j for j in range(len(found['scores'])) if j not in taken and found['labels'][j] == expected['labels'][i]
        ]
        fits = [j for j in fits if abs(found['scores'][j] - expected['scores'][i]) <= SCORE_LIMIT]
        ious = box_ious(expected['boxes'][i], found['boxes'][fits]) if fits else np.zeros(0)
        if not fits or ious.max() < IOU_LIMIT:
            misses += expected['scores'][i] > edge
            continue
        j = fits[int(ious.argmax())]
        taken.add(j)
        worst_box = min(worst_box, float(ious.max()))
        worst_score = max(worst_score, float(abs(found['scores'][j] - expected['scores'][i])))
        if 'pasted' in expected:
            a, b = expected['pasted'][i], found['pasted'][j]
            a = np.where(found['borderline'][j], b, a)
            union = (a | b).sum()
            worst_mask = min(worst_mask, float((a & b).sum() / union) if union else 1.0)
    misses += sum(found['scores'][j] > edge for j in range(len(found['scores'])) if j not in taken)
    checks = [
        _check(f'detections without their like, of {len(expected["scores"])}', int(misses), 0),
        _check('largest difference of a score', worst_score, SCORE_LIMIT),
        _check('1 - smallest IoU of boxes', 1 - worst_box, 1 - IOU_LIMIT),
    ]
    if 'pasted' in expected:
        checks.append(_check('1 - smallest IoU of masks', 1 - worst_mask, 1 - IOU_LIMIT))
    if 'left_out' in raw:
        checks.append(_check('candidates that NMS should have seen', int(raw['left_out']), 0))
    return checks


def box_ious(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (N, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common
    return np.where(union > 0, common / np.maximum(union, 1e-12), (np.abs(others - box).max(1) < 1e-3).astype(float))


def _pasted(result: Outputs, sample: Sample, mask_thr: float | None) -> Outputs:
    """The rows that are detections; masks (N, 28, 28) as bits of the whole picture, by MMDetection's own pasting."""
    rows = result['scores'] > 0
    kept = {name: value[rows] for name, value in result.items() if np.ndim(value)}
    if 'masks' in kept:
        from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

        masks, boxes = torch.from_numpy(kept.pop('masks')), torch.from_numpy(kept['boxes'])
        if len(masks):
            pasted: Tensor = _do_paste_mask(masks[:, None], boxes, *sample.picture, skip_empty=False)[0]
            threshold = 0.5 if mask_thr is None else mask_thr
            kept['pasted'] = (pasted >= threshold).numpy()
            kept['borderline'] = ((pasted - threshold).abs() <= SCORE_LIMIT).numpy()
        else:
            kept['pasted'] = kept['borderline'] = np.zeros((0, *sample.picture), bool)
    return kept


def _check(name: str, figure: float, limit: float) -> dict:
    return dict(name=name, figure=figure, limit=limit, passed=bool(figure <= limit))


def worst(checks: Sequence[dict]) -> list[dict]:
    """One line for each kind of check of a form: the sample with the largest figure, and the number of samples."""
    kinds: dict[tuple[str, str], list[dict]] = {}
    for check in checks:
        kinds.setdefault((check['form'], check['name'].partition(', of ')[0]), []).append(check)
    found = []
    for group in kinds.values():
        largest = max(group, key=lambda check: (not check['passed'], check['figure']))  # NaN is above nothing
        found.append({**largest, 'samples': len(group)})
    return found
