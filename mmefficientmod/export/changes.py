"""What a precision other than float32 changes, and which precision is the fastest within a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..utils import UserError
from .check import Sample, box_ious, is_finite, level_difference
from .description import Description

SCORE, IOU = 0.3, 0.5  # which detections count, and which are the same


def measure_change(task: str, expected: Sequence[Mapping], found: Sequence[Mapping], samples: Sequence[Sample]) -> dict:
    """What a precision changes on all check images: classes of pixels or images, detections, or values of the outputs.

    Args:
        task (str): Of the model.
        expected (Sequence[Mapping]): The outputs of float32, for each sample.
        found (Sequence[Mapping]): Those of the precision.
        samples (Sequence[Sample]): The inputs.

    Returns:
        dict: ``name`` of the figure and ``figure``, a share.

    Raises:
        UserError: If a value is NaN or infinite.
    """
    if not all(map(is_finite, found)):
        raise UserError('a file gives NaN or infinite values: calibrate INT8 with more images; no file was left')
    if task == 'segmentation':
        sizes = [sample.size for sample in samples]
        different = sum((a['classes'] != b['classes'])[:, :h, :w].sum() for a, b, (h, w) in zip(expected, found, sizes))
        pixels = sum(a['classes'][:, :h, :w].size for a, (h, w) in zip(expected, sizes))
        return dict(name='share of pixels of another class', figure=float(different / pixels))
    if task == 'detection':
        changed, total = map(sum, zip(*(changed_detections(a, b) for a, b in zip(expected, found))))
        name = f'share of {total} detections (score >= {SCORE}) that the other lacks (same class, IoU >= {IOU})'
        return dict(name=name, figure=changed / max(total, 1))
    if task == 'classification':
        best, other = (np.concatenate([one['scores'].argmax(1) for one in each]) for each in (expected, found))
        return dict(name='share of images of another best class', figure=float((best != other).mean()))
    worst = max(level_difference(a, b) for a, b in zip(expected, found))
    return dict(name='largest difference of an output, as a share of its largest value', figure=worst)


def changed_detections(one: Mapping, other: Mapping) -> tuple[int, int]:
    """How many detections of either result the other lacks, and how many there are; scores may differ."""
    changed = total = 0
    for mine, theirs in ((one, other), (other, one)):
        for i in np.flatnonzero(mine['scores'] >= SCORE):
            same = theirs['boxes'][(theirs['scores'] > 0) & (theirs['labels'] == mine['labels'][i])]
            changed += not (box_ious(mine['boxes'][i], same) >= IOU).any()
            total += 1
    return int(changed), total


def recommend(description: Description, limit: float, losses: Mapping[str, float] | None = None) -> str:
    """One line on the fastest file within a limit.

    Args:
        description (Description): With the times of the files and the changes by each precision.
        limit (float): The largest change, or loss.
        losses (Mapping[str, float], optional): Points of AP that each file loses. Defaults to none: the limit holds
            for the shares that :func:`measure_change` measures, the largest of all sizes.

    Returns:
        str: The name, and for each file its time and what it changes or loses, by rising time.
    """
    if losses is None:
        found = dict.fromkeys((name for name in description.files if '-' not in name), 0.0)
        for check in description.checks:
            if check['form'] in description.files and check['limit'] is None:
                found[check['form']] = max(found.get(check['form'], 0.0), check['figure'])
        losses = found
    times = {name: description.latency_ms[name] for name in description.files}
    within = [name for name in times if losses[name] <= limit]
    listed = [f'{name} {times[name]:.1f} ms, {losses[name]:.3g}' for name in sorted(times, key=times.__getitem__)]
    best = min(within, key=times.__getitem__)  # float32 loses nothing
    return f'fastest within {limit:g}: {best} ({"; ".join(listed)})'
