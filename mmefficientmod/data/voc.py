"""Annotations in Pascal VOC's format: one XML file for each image, and a list of names."""

from __future__ import annotations

import os.path as osp
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.fileio import list_from_file

from ..utils import enumerate_names
from .built import Budget, has_own_classes
from .findings import Finding, Tally, error, find_unlearnt, judge, nearest_name
from .sources import Source

MOST_FILES = 2000  # XML files that are read before the start


def check_before(source: Source) -> Iterator[Finding]:
    """Checks that each line of the list has its XML file, and what MMDetection reads of these."""
    listed, place = source.path('ann_file'), source.place
    if not listed or not osp.isfile(listed):
        return
    try:
        names = list_from_file(listed)
    except (OSError, ValueError) as problem:
        yield error(place, f'{listed} cannot be read ({problem})')
        return
    if not names:
        yield error(place, f'{listed} lists no images')
        return
    folder = osp.join(source.path('data_prefix.sub_data_root') or '', source.option('ann_subdir') or '')
    paths = [osp.join(folder, f'{name}.xml') for name in names]
    missing = [path for path in paths if not osp.isfile(path)]
    if missing:
        suffixed = osp.splitext(names[0])[1]
        hint = 'write names without a suffix, one a line' if suffixed else 'correct the list or ann_subdir'
        message = f'{len(missing)} of {len(paths)} annotations that {listed} lists do not exist, as {missing[0]}'
        yield error(place, f'{message}: {hint}')
        return
    tally = Tally()
    looked = list(Budget(1.0).within(paths[:MOST_FILES]))
    for path in looked:
        for fault in find_faults(path):
            tally.add(fault, path)
    yield from tally.errors(place, len(looked), 'files')


def find_faults(path: str) -> Iterator[str]:
    """What MMDetection's reader would fail on in one XML file."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, OSError) as problem:
        yield f'are not XML ({problem})'
        return
    size = root.find('size')
    if size is not None and not all(_number(size.findtext(side)) for side in ('width', 'height')):
        yield 'have a <size> without a width and height above 0'
    for each in root.findall('object'):
        box = each.find('bndbox')
        if each.findtext('name') is None:
            yield 'have an <object> without a <name>'
        if box is None or any(_number(box.findtext(side)) is None for side in ('xmin', 'ymin', 'xmax', 'ymax')):
            yield 'have an <object> without a <bndbox> of four numbers'


def _number(text: str | None) -> float | None:
    try:
        return float(text or '')
    except ValueError:
        return None


def compare(place: str, dataset: Any, entries: Sequence[Mapping], training: bool) -> Iterator[Finding]:
    """Compares the objects of the XML files with those of the built data set."""
    classes = list(dataset.metainfo['classes'])
    in_files: Counter = Counter()
    kept, count = 0, 0
    for entry in Budget(1.0).within(entries):
        root = ElementTree.parse(entry['xml_path']).getroot()
        in_files.update(each.findtext('name') for each in root.findall('object'))
        kept += len(entry['instances'])
        count += 1
    total, source = sum(in_files.values()), dataset.ann_file
    used = [name for name in classes if in_files[name]]
    names = enumerate_names(sorted(map(str, in_files)), 10)
    if total and not used:
        message = f'none of the classes {enumerate_names(classes)} is in the files of {source}, which have {names}'
        yield error(place, message)
        return
    others = {name: nearest_name(name, classes) for name in in_files if name not in classes}
    meant = [(name, near) for name, near in others.items() if near and not in_files[near]]
    yield from find_flat_boxes(place, entries, source)
    if meant:
        name, near = meant[0]
        message = f'{in_files[name]} of {total} objects are named {name!r}, which is not a class, and none {near!r}'
        yield error(place, f'{message}: correct metainfo.classes; the files of {source} have {names}')
    lost = sum(in_files[name] for name in classes) - kept
    if lost > 0:
        message = f'{lost} of {total} objects of the files of {source} are dropped by MMDetection'
        yield judge(place, lost, total, message)
    if training and count == len(dataset) and not meant and has_own_classes(dataset):
        empty = [name for name in classes if name not in used]
        yield from find_unlearnt(place, empty, len(classes), f'object in the files of {source}')


def find_flat_boxes(place: str, entries: Sequence[Mapping], source: str) -> list[Finding]:
    """Boxes without a width or a height once MMDetection has cut them to whole pixels: their loss is not a number."""
    boxes = [(each['bbox'], entry) for entry in entries for each in entry['instances'] if not each['ignore_flag']]
    flat = [(box, entry) for box, entry in boxes if box[2] <= box[0] or box[3] <= box[1]]
    if not flat:
        return []
    hint = 'are they shares of the size of the image, or [x, y, width, height]? VOC has corners in pixels'
    message = f'{len(flat)} of {len(boxes)} boxes of the files of {source} have no width or no height in whole pixels'
    return [error(place, f'{message}, as one of {flat[0][1]["xml_path"]}: {hint}')]
