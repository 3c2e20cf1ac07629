"""Whether model, evaluators and the classes of the data fit together, from the settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ..codebases.nodes import find_dicts, type_name
from ..utils import enumerate_names
from .findings import Finding, error, warning, write_tuple
from .sources import Source

BINARY_HEADS = ('STDCHead',)  # tell boundaries from the rest, whatever the classes are
SETTINGS = ('train_cfg', 'test_cfg', 'data_preprocessor')  # of a model: no parts of the network


def check_model(config: Config, sources: Sequence[Source]) -> Iterator[Finding]:
    """Compares heads and evaluators with the data sets of a training or a test."""
    model = config.get('model') or {}
    nodes = list(find_dicts(model, 'model'))
    yield from compare_splits(sources)
    for source in sources:
        yield from check_heads(source, nodes)
    for part in dict.fromkeys(source.part for source in sources):
        yield from check_masks(model, [source for source in sources if source.part == part])
        yield from check_metrics(config.get(f'{part}_evaluator'), f'{part}_evaluator', model)


def compare_splits(sources: Sequence[Source]) -> Iterator[Finding]:
    """Data sets of other classes than the first one that is trained on."""
    first = next((source for source in sources if source.training and source.classes), None)
    for source in sources:
        if first is not None and not source.training and source.classes:
            yield from compare_classes(source.place, source.classes, first.place, first.classes or [])


def compare_classes(place: str, classes: Sequence[str], first_place: str, first: Sequence[str]) -> Iterator[Finding]:
    """Whether a data set that is evaluated has the classes of the one that is trained on."""
    if list(classes) != list(first):
        yield error(
            place,
            f'it has {len(classes)} classes, {enumerate_names(classes)}, and {first_place} has {len(first)}, '
            f'{enumerate_names(first)}, so that a label differs: set '
            f'metainfo=dict(classes={write_tuple(first)}) in both',
        )


def compare_trained(place: str, classes: Sequence[str], path: str, trained: Sequence[str]) -> Iterator[Finding]:
    """Whether data have the classes that a checkpoint notes; other names at the same places may be another language."""
    own, noted = ([str(name).strip().casefold() for name in names] for names in (classes, trained))
    differing = [i for i, (one, other) in enumerate(zip(own, noted)) if one != other]
    if len(own) != len(noted):
        difference = f'it has {len(own)} classes, and {path} was trained on {len(noted)}'
    elif differing:
        first = differing[0]
        difference = f'label {first} is {classes[first]!r}, but {path} was trained with {trained[first]!r} there'
    else:
        return
    moved = len(own) != len(noted) or any(own[i] in noted or noted[i] in own for i in differing)
    if moved:
        yield error(place, f'{difference}: set metainfo=dict(classes={write_tuple(map(str, trained))})')
    else:
        yield warning(place, f'{difference} ({len(differing)} of {len(own)} names differ)')


def is_open_vocabulary(model: Mapping) -> bool:
    """Whether a model takes the names of the classes as text, so that it works on other classes than it learnt."""
    return any('text' in place or 'language' in place for place, _ in find_dicts(model, 'model'))


def check_heads(source: Source, nodes: Iterable[tuple[str, Mapping]]) -> Iterator[Finding]:
    """Heads that have fewer classes than the data, or more than the user names."""
    classes: Any = source.classes
    if 'Panoptic' in type_name(source.settings):  # its heads tell things only
        meta = source.settings.get('metainfo') or {}
        classes = meta.get('thing_classes') if meta.get('classes') else None
    if isinstance(classes, (list, tuple)):
        named = source.named_classes is not None
        origin = f'{source.place}.metainfo names' if named else f'{type_name(source.settings)} has'
        wide = named and source.training and not source.option('return_classes')
        yield from compare_heads(nodes, len(classes), origin, wide)


def compare_heads(nodes: Iterable[tuple[str, Mapping]], classes: int, origin: str, wide: bool) -> Iterator[Finding]:
    """Heads of another number of classes.

    Args:
        nodes (Iterable): Dotted path and settings of each part of the model.
        classes (int): The number in the data.
        origin (str): Who says so, with a verb.
        wide (bool): Whether more classes in a head are worth a warning.
    """
    for place, node in nodes:
        number = node.get('num_classes')
        if not tells_classes(place, node) or not isinstance(number, int) or number == classes:
            continue
        option = f'{place}.num_classes'
        message = f'{option} is {number}, but {origin} {classes} classes: add --cfg-options {option}={classes}'
        if number < classes:
            yield error(place, message)
        elif wide:
            yield warning(place, message)


def tells_classes(place: str, node: Mapping) -> bool:
    """Whether a part of a model is a head that tells the classes of the data from one another."""
    name = re.sub(r'(\.\d+)+$', '', place).rpartition('.')[2]  # of the list, where a model has several such heads
    return (
        'head' in name and name != 'rpn_head' and type_name(node) not in BINARY_HEADS and not node.get('class_agnostic')
    )


def check_masks(model: Mapping, sources: Sequence[Source]) -> Iterator[Finding]:
    """A mask head without masks in the training data."""
    roi_head = model.get('roi_head')
    heads = roi_head if isinstance(roi_head, (list, tuple)) else [roi_head]
    if not any(isinstance(head, Mapping) and head.get('mask_head') for head in heads):
        return
    for source in sources:
        if source.training and source.loads('with_bbox') and not source.loads('with_mask'):
            yield error(
                source.place,
                'the model has a mask head, but LoadAnnotations loads no masks: set with_mask=True in its pipeline, or '
                'model.roi_head.mask_head=None and model.roi_head.mask_roi_extractor=None',
            )


def check_metrics(evaluator: object, place: str, model: Mapping) -> Iterator[Finding]:
    """Metrics that the model's outputs cannot have."""
    for where, metric in find_dicts(evaluator, place):
        wanted = metric.get('metric')
        wanted = [wanted] if isinstance(wanted, str) else wanted or []
        if type_name(metric) == 'CocoMetric' and 'segm' in wanted and model and not makes_masks(model):
            yield error(where, f"metric has 'segm', but the model predicts no masks: set {where}.metric=bbox")
        if type_name(metric) == 'Accuracy':
            head = model.get('head') if isinstance(model.get('head'), Mapping) else {}
            number, topk = (head or {}).get('num_classes'), metric.get('topk', 1)
            topk = [topk] if isinstance(topk, int) else topk
            if isinstance(number, int) and topk and max(topk) > number:
                fitting = ','.join(str(k) for k in topk if k <= number)
                yield error(
                    where,
                    f'topk is {tuple(topk)}, but model.head.num_classes is {number}: add '
                    f'--cfg-options {where}.topk=({fitting},)',
                )


def makes_masks(model: Mapping) -> bool:
    """Whether any part of a detector, by its name or type, is about masks."""
    for place, node in find_dicts({key: value for key, value in model.items() if key not in SETTINGS}, 'model'):
        if {*place.split('.')} & {*SETTINGS}:
            continue
        names = [key for key, value in node.items() if value is not None]
        if place != 'model':
            names.append(type_name(node))
        if any(part in name.lower() for name in names for part in ('mask', 'panoptic', 'solo')):
            return True
        if re.search(r'Ins(?![a-z])|InsSep|Inst', type_name(node)):
            return True
    return False
