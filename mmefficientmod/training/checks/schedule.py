"""Lengths and metrics of a training: schedules that end before or after it, metrics that are never there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from ...codebases.nodes import find_dicts, type_name
from ...data.findings import nearest_name
from ...utils import UserError, enumerate_names

SHARE = 0.1  # by which a schedule may be longer or shorter than the training


def metric_keys(metric: Mapping) -> list[str] | None:
    """The names of the values that a metric gives; None for a metric whose names are not known here."""
    kind = type_name(metric)
    prefix = {'CocoMetric': 'coco', 'VOCMetric': 'pascal_voc', 'Accuracy': 'accuracy', 'IoUMetric': ''}.get(kind)
    if prefix is None or metric.get('classwise') or metric.get('format_only'):
        return None
    if kind == 'CocoMetric':
        names = []
        for each in _listed(metric.get('metric', 'bbox')):
            if each not in ('bbox', 'segm'):
                return None
            names += [f'{each}_{item}' for item in metric.get('metric_items') or COCO_ITEMS]
    elif kind == 'VOCMetric':
        if metric.get('metric', 'mAP') != 'mAP':
            return None
        thresholds = _listed(metric.get('iou_thrs', 0.5))
        names = ['mAP', *(f'AP{int(each * 100):02d}' for each in thresholds)]
    elif kind == 'IoUMetric':
        names = ['aAcc']
        for each in _listed(metric.get('iou_metrics', ['mIoU'])):
            names += {'mIoU': ['mIoU', 'mAcc'], 'mDice': ['mDice', 'mAcc']}.get(
                each, ['mFscore', 'mPrecision', 'mRecall']
            )
    else:
        if metric.get('thrs', 0.0) not in (0.0, None):
            return None
        names = [f'top{each}' for each in _listed(metric.get('topk', (1,)))]
    prefix = metric.get('prefix') or prefix
    return [f'{prefix}/{name}' if prefix else name for name in dict.fromkeys(names)]


FSCORE = ['mFscore', 'mPrecision', 'mRecall']
IOU_METRICS = 'mIoU', 'mDice', 'mFscore'
COCO_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def _listed(value: Any) -> Sequence:
    return value if isinstance(value, (list, tuple)) else [value]


def check_best(config: Config) -> None:
    """Refuses a ``save_best`` that no validation gives, or whose direction MMEngine cannot infer.

    Raises:
        UserError: With the names that there are.
    """
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    wanted = hook.get('save_best')
    if not wanted or not config.get('val_evaluator'):
        return
    metrics = [node for _, node in find_dicts(config.val_evaluator) if type_name(node)]
    keys = [metric_keys(metric) for metric in metrics if type_name(metric) != 'Evaluator']
    if all(each is not None for each in keys):
        known = [name for each in keys for name in each or ()]
        missing = [name for name in _listed(wanted) if name not in known and name != 'auto']
        if missing and known:
            usual = next((name for name in known if name.endswith(('mAP', 'mIoU', 'top1'))), known[0])
            nearest = nearest_name(missing[0], known) or usual
            raise UserError(
                f'default_hooks.checkpoint.save_best is {missing[0]!r}, which no validation gives; it gives '
                f'{enumerate_names(known, 12)}: add --cfg-options default_hooks.checkpoint.save_best={nearest}'
            )
    rules = {key: hook[key] for key in ('rule', 'greater_keys', 'less_keys') if key in hook}
    try:
        CheckpointHook(save_best=wanted, **rules)
    except ValueError as problem:
        raise UserError(
            f'default_hooks.checkpoint.save_best={wanted}: {problem} Add --cfg-options '
            'default_hooks.checkpoint.rule=greater, or less'
        ) from problem


def check_metrics(config: Config, split: str) -> None:
    """Raises UserError for a metric of MMSegmentation's that only the end of an evaluation would refuse."""
    for _, node in find_dicts(config.get(f'{split}_evaluator') or {}):
        wanted = _listed(node.get('iou_metrics', [])) if type_name(node) == 'IoUMetric' else []
        unknown = [name for name in wanted if name not in IOU_METRICS]
        if unknown:
            raise UserError(
                f'{split}_evaluator.iou_metrics has {unknown[0]!r}, which IoUMetric does not know: choose from '
                f'{", ".join(IOU_METRICS)}'
            )


def find_misfits(config: Config, batches: int) -> Iterator[str]:
    """Lines for schedules of the learning rate that do not fit the length of the training.

    Args:
        config (Config): Of the training.
        batches (int): Iterations of an epoch.
    """
    loop = config.get('train_cfg') or {}
    epochs, total = loop.get('max_epochs'), loop.get('max_iters')
    if isinstance(epochs, int):
        total = epochs * batches
    if not isinstance(total, int) or total < 1:
        return
    schedulers = config.get('param_scheduler') or []
    listed = schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
    for number, each in enumerate(listed):
        if isinstance(each, Mapping) and 'type' in each:
            place = f'param_scheduler.{number}' if isinstance(schedulers, (list, tuple)) else 'param_scheduler'
            by_epoch = each.get('by_epoch', True)
            length, unit = (epochs, 'epochs') if by_epoch else (total, 'iterations')
            if length is not None:
                yield from _judge(each, place, length, unit)


def _judge(scheduler: Mapping, place: str, length: int, unit: str) -> Iterator[str]:
    kind, end = type_name(scheduler), scheduler.get('end')
    begin = scheduler.get('begin', 0)
    if kind in ('LinearLR', 'ConstantLR', 'LinearParamScheduler', 'ConstantParamScheduler'):
        if isinstance(end, int) and end > length:
            yield (
                f'the warm-up {place} takes {end} {unit} and the training {length}: the learning rate never rises to '
                f'its value; add --cfg-options {place}.end={max(1, length // 10)}'
            )
        return
    if kind == 'MultiStepLR':
        steps = [step for step in scheduler.get('milestones', ()) if isinstance(step, int)]
        if steps and min(steps) >= length:
            yield (
                f'all milestones of {place}, {enumerate_names(steps)}, are behind the end of the training at {length} '
                f'{unit}: the learning rate never falls'
            )
        return
    if begin >= length:
        yield f'the schedule {place} begins at {begin} {unit} and the training ends at {length}: it has no effect'
        return
    period = scheduler.get('T_max') or scheduler.get('total_iters')
    last = end if isinstance(end, int) and end < 10**6 else begin + period if isinstance(period, int) else None
    if last is None or abs(last - length) <= SHARE * length:
        return
    how = (
        'the learning rate stays as it is from there on'
        if last < length
        else 'the learning rate does not fall to its end'
    )
    option = f'{place}.end={length}' + (f' {place}.T_max={length - begin}' if 'T_max' in scheduler else '')
    yield f'the schedule {place} ends at {last} {unit} and the training at {length}: {how}; add --cfg-options {option}'
