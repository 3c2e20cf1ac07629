"""Label images of MMSegmentation: whether each image has one, and what the pipeline makes of their values."""

from __future__ import annotations

import os.path as osp
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..utils import UserError, enumerate_names
from .built import Budget, apply, choose_indices, find_transform, has_own_classes
from .files import read_header, read_size
from .findings import Finding, error, find_unlearnt, has_errors, warning
from .images import check_unread, describe_missing, walk_images
from .sources import Source

IGNORED = 255  # what MMSegmentation's losses and metrics leave out
MOST_LABELS = 400  # label images of a data set that are opened
MANY = 0.05  # share of labels without any class from which it is told


@dataclass
class Values:
    """Values of the label images that were looked at."""

    stored: dict[int, str] = field(default_factory=dict)  # value in the file -> the first file with it
    loaded: dict[int, str] = field(default_factory=dict)  # value that the model gets -> the first file with it
    zeros: float = 0.0  # share of the pixels whose value in the file is 0
    files: int = 0  # number of files
    ignored: list[str] = field(default_factory=list)  # files of which the pipeline ignores every pixel
    shapes: list[tuple[str, tuple]] = field(default_factory=list)  # file and shape of those with several channels
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # file and error of those that cannot be loaded


def check_names(source: Source) -> Iterator[Finding]:
    """Whether the names of the classes fit the data set's class and palette."""
    given, place = source.named_classes, source.place
    if given is None or isinstance(given, str):
        if source.classes is None:
            yield error(place, "metainfo.classes is not set: name the classes in the order of the labels' values")
        return
    try:
        label_map = source.kind.get_label_map(tuple(given))
    except ValueError:
        known = source.kind.METAINFO['classes']
        other = [name for name in given if name not in known]
        yield error(
            place,
            f'{source.kind_name} knows {len(known)} classes and not {enumerate_names(other)}: set '
            f"type='BaseSegDataset', reduce_zero_label=False, img_suffix and seg_map_suffix for your own",
        )
        return
    palette = (source.settings.get('metainfo') or {}).get('palette')
    if palette and len(palette) != len(given) and (label_map is None or len(palette) < len(given)):
        yield error(
            place, f'metainfo.palette has {len(palette)} colours for {len(given)} classes: leave it out or complete it'
        )


def compare(place: str, dataset: Any, entries: Sequence[Mapping], training: bool) -> Iterator[Finding]:
    """Compares label images with what the built data set makes of them, given its entries or a sample of them."""
    yield from find_unread(place, dataset)
    load = find_transform(dataset, 'LoadAnnotations')
    labelled = [entry for entry in entries if entry.get('seg_map_path')]
    if load is None or not labelled:
        return
    wanted = getattr(load, 'reduce_zero_label', None)
    if wanted is not None and wanted != dataset.reduce_zero_label:
        yield error(
            place,
            f'reduce_zero_label is {dataset.reduce_zero_label} in the data set and {wanted} in LoadAnnotations: '
            'set both alike, True only where the label 0 means nothing',
        )
        return
    missing = [entry['seg_map_path'] for entry in labelled if not osp.exists(entry['seg_map_path'])]
    if missing:
        yield error(place, describe_missing('label images', missing, len(labelled)))
        return
    yield from find_other_sizes(place, labelled)
    values = read_values(load, [labelled[i] for i in choose_indices(len(labelled), MOST_LABELS)])
    yield from judge_values(place, dataset, values, training)


def find_unread(place: str, dataset: Any) -> Iterator[Finding]:
    """Images of another suffix, and labels without an image, in folders that are read as a whole."""
    images, labels = dataset.data_prefix.get('img_path'), dataset.data_prefix.get('seg_map_path')
    if dataset.ann_file or not images or not osp.isdir(images):
        return
    yield from check_unread(place, images, [dataset.img_suffix], 'img_suffix')
    if labels and osp.isdir(labels) and osp.realpath(labels) != osp.realpath(images):
        stems = {name[: -len(dataset.img_suffix)] for name in walk_images(images) if name.endswith(dataset.img_suffix)}
        suffix = dataset.seg_map_suffix
        found = [name for name in walk_images(labels) if name.endswith(suffix)]
        single = [name for name in found if name[: -len(suffix)] not in stems]
        if single and len(single) < len(found):  # all of them: another suffix, which the missing labels tell
            message = f'{len(single)} of {len(found)} labels in {labels} have no image in {images}, as {single[0]}'
            yield warning(place, f'{message}: they are never read')


def find_other_sizes(place: str, entries: Sequence[Mapping]) -> Iterator[Finding]:
    """Labels of another size than their image."""
    other, count = [], 0
    for entry in Budget(0.5).within(entries):
        try:
            image, label = read_size(entry['img_path']), read_header(entry['seg_map_path'])[:2]  # labels stay unturned
        except UserError:
            continue
        count += 1
        if image != label:
            sizes = '{} x {}, its image of {} x {} pixels'.format(*label, *image)
            other.append(f'{entry["seg_map_path"]} of {sizes}')
    if other:
        yield error(place, f'{len(other)} of {count} labels have another size than their image, as {other[0]}')


def read_values(load: Any, entries: Sequence[Mapping]) -> Values:
    """Opens label images twice: as they are stored, and with the pipeline's own transform."""
    from PIL import Image

    values, pixels, zeros = Values(), 0, 0
    for entry in Budget(1.0).within(entries):
        path = entry['seg_map_path']
        values.files += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                loaded = np.asarray(apply([load], entry)['gt_seg_map'])  # type: ignore[index]
                with Image.open(path) as image:
                    stored = np.asarray(image)
        except Exception as problem:  # whatever a damaged file leads the libraries to
            values.unreadable.append((path, type(problem).__name__))
            continue
        if loaded.ndim != 2:
            values.shapes.append((path, loaded.shape))
            continue
        found = np.unique(loaded)
        for value in np.unique(stored).tolist():
            values.stored.setdefault(int(value), path)
        for value in found.tolist():
            values.loaded.setdefault(int(value), path)
        if found.tolist() == [IGNORED]:
            values.ignored.append(path)
        zeros += int((stored == 0).sum())
        pixels += stored.size
    values.zeros = zeros / max(pixels, 1)
    return values


def judge_values(place: str, dataset: Any, values: Values, training: bool) -> Iterator[Finding]:
    """What the values of the label images mean for the training."""
    classes = dataset.metainfo['classes']
    if values.unreadable:
        path, problem = values.unreadable[0]
        yield error(place, f'{len(values.unreadable)} of {values.files} labels cannot be read, as {path} ({problem})')
        return
    if values.shapes:
        path, shape = values.shapes[0]
        yield error(
            place,
            f'{len(values.shapes)} of {values.files} labels are colour images, as {path} of shape {shape}: a label '
            f'has one channel, the number of the class, 0 to {len(classes) - 1}',
        )
        return
    whole = values.files == len(dataset)
    checks = (_judge_large, _judge_black_and_white, _judge_zero, _judge_ignored, _judge_beyond)
    found = next(filter(None, (list(check(place, dataset, values, whole)) for check in checks)), [])
    yield from found
    if has_errors(found):
        return
    if training and whole and has_own_classes(dataset):  # of a part of a stock set, few are seen
        unseen = [name for number, name in enumerate(classes) if number not in values.loaded]
        yield from find_unlearnt(place, unseen, len(classes), f'pixel in {values.files} labels')


def _judge_large(place: str, dataset: Any, values: Values, whole: bool) -> Iterator[Finding]:
    large = next((value for value in values.stored if value > IGNORED), None)
    if large is not None:
        message = f'{values.stored[large]} has the value {large}: MMSegmentation reads labels as 8 bits'
        yield error(place, f'{message}, {large} becomes {large % 256}; use values of 0 to 255')


def _judge_black_and_white(place: str, dataset: Any, values: Values, whole: bool) -> Iterator[Finding]:
    """Masks as image editors write them: black and white for two classes, of which white would be ignored."""
    if set(values.stored) != {0, IGNORED} or len(dataset.metainfo['classes']) > 2:
        return
    folder = dataset.data_prefix.get('seg_map_path')
    command = (
        "python -c \"from pathlib import Path; from PIL import Image; out = Path('labels'); out.mkdir(); "
        "[Image.open(path).convert('L').point(lambda value: value // 255).save(out / path.name) for path in "
        f"Path({str(folder)!r}).glob('*{dataset.seg_map_suffix}')]\""
    )
    yield error(
        place,
        f'the labels have the values 0 and 255 only, as {values.stored[IGNORED]}; expected are 0 and 1, 255 is '
        f'ignored: map 255 to 1 with {command} and set data_prefix.seg_map_path to its output, with two classes',
    )


def _judge_zero(place: str, dataset: Any, values: Values, whole: bool) -> Iterator[Finding]:
    """Whether reduce_zero_label drops a class of the user's own."""
    classes = dataset.metainfo['classes']
    chosen = dataset.label_map is not None or not has_own_classes(dataset)
    if not dataset.reduce_zero_label or chosen or 0 not in values.stored:
        return
    share = f'{values.zeros:.0%} of the pixels'
    if whole and len(classes) not in values.stored:
        yield error(
            place,
            f'reduce_zero_label=True ignores the label 0, {share}, and makes 1 the first class of {len(classes)}, but '
            f'the labels have the values {_list(values.stored)}: set reduce_zero_label=False in the data set and in '
            'LoadAnnotations',
        )
        return
    message = f'reduce_zero_label=True: the label 0, {share}, as in {values.stored[0]}, means nothing and is ignored'
    yield warning(place, f'{message}; set it to False if 0 is your first class')


def _judge_ignored(place: str, dataset: Any, values: Values, whole: bool) -> Iterator[Finding]:
    count, found = len(values.ignored), _list(values.stored)
    if count <= MANY * values.files:
        return
    message = f'{count} of {values.files} labels hold nothing but ignored pixels, as {values.ignored[0]}'
    if count < values.files:
        yield warning(place, message)
        return
    if dataset.label_map is not None:
        known = len(type(dataset).METAINFO['classes'])
        message += (
            f': {type(dataset).__name__} takes the label numbers of its {known} classes, the files have {found}; set '
            "type='BaseSegDataset' and reduce_zero_label=False for your own labels"
        )
    else:
        message += f': the files have the values {found}, of which none is a class'
    yield error(place, message)


def _judge_beyond(place: str, dataset: Any, values: Values, whole: bool) -> Iterator[Finding]:
    classes = dataset.metainfo['classes']
    beyond = sorted(value for value in values.loaded if value >= len(classes) and value != IGNORED)
    if beyond:
        shift = 1 if dataset.reduce_zero_label else 0
        expected = f'{shift} to {len(classes) - 1 + shift}, and {"0" if shift else "255"} for nothing'
        yield error(
            place,
            f'{values.loaded[beyond[0]]} has the value {beyond[0] + shift}, which is not a class: found '
            f'{_list(values.stored)}, expected {expected}, for {len(classes)} classes; add names to metainfo.classes, '
            'or map the values',
        )


def _list(values: Mapping[int, str]) -> str:
    return enumerate_names(sorted(values), 12)
