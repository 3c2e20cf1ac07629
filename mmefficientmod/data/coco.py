"""Annotation files in COCO's format: whether MMDetection can read them, and what it makes of them."""

from __future__ import annotations

import json
import math
import mmap
import os
import os.path as osp
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..codebases.nodes import type_name
from ..utils import describe_error, enumerate_names
from .findings import (
    Finding,
    Tally,
    check_in_turn,
    error,
    find_unlearnt,
    judge,
    nearest_name,
    repeated,
    warning,
    write_tuple,
)
from .sources import Source

MOST_BYTES = 50 * 2**20  # of a file that is read as a whole: COCO's own training file takes ten seconds
ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
IMAGE_KEYS = ('id', 'height', 'width')
WITHOUT_MASKS = (
    'add masks, or train a detector of boxes with model.roi_head.mask_head=None, '
    'model.roi_head.mask_roi_extractor=None, with_mask=False in each LoadAnnotations and metric=bbox in the evaluators'
)
OUTSIDE = 2.0  # pixels by which a box may reach over the border of its image


class FormatError(ValueError):
    """A file that is not in COCO's format; the message is one line without the file's name."""


def read_annotations(path: str) -> dict:
    """The content of an annotation file; read once for the config and the built data set.

    Raises:
        FormatError: If it is not JSON in COCO's format.
        OSError: If it cannot be read.
    """
    status = os.stat(path)
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(path: str, modified: int, size: int) -> dict:
    with open(path, 'rb') as file:
        data = file.read()
    if data.startswith(b'\xef\xbb\xbf'):
        raise FormatError('starts with a byte order mark: save it as UTF-8 without one')
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as problem:
        raise FormatError(f'is not JSON in UTF-8 ({describe_error(problem)})') from problem
    if not isinstance(content, dict):
        raise FormatError(f'holds a {type(content).__name__} in place of images, annotations and categories')
    return content


forget_annotations = _read.cache_clear


def is_small(path: str) -> bool:
    """Whether a file is read as a whole."""
    return osp.getsize(path) <= MOST_BYTES


def read_categories(path: str) -> list | None:
    """The categories of a large annotation file, without reading the rest; None if they are not found."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.rfind(b'"categories"')
        start = data.find(b'[', start) if start >= 0 else -1
        text = data[start : start + 4 * 2**20].decode(errors='replace') if start >= 0 else ''
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None


def is_coco(source: Source) -> bool:
    """Whether a data set is read by MMDetection's own reader of COCO's format, or of LVIS's, which is alike."""
    if not source.is_known or not source.is_a('mmdet', 'CocoDataset'):
        return False
    from mmdet.datasets import CocoDataset, LVISV05Dataset, LVISV1Dataset

    own = ('load_data_list', 'parse_data_info', 'COCOAPI')
    readers = (CocoDataset, LVISV05Dataset, LVISV1Dataset)
    return any(all(getattr(source.kind, name) is getattr(reader, name) for name in own) for reader in readers)


def check_file(source: Source) -> Iterator[Finding]:
    """Checks the annotation file of a data set before MMDetection reads it: format, keys, ids, names of classes."""
    path, place = source.path('ann_file'), source.place
    if isinstance(source.settings.get('ann_file'), (list, tuple)):
        yield error(place, 'ann_file is a list: give one file, and join data sets with type="ConcatDataset"')
    elif path is not None and osp.isfile(path):
        try:
            if is_small(path):
                yield from check_content(source, path, read_annotations(path))
            elif categories := read_categories(path):
                yield from check_classes(source, path, categories)
        except FormatError as problem:
            yield _wrong_format(place, path, problem)


def _wrong_format(place: str, path: str, problem: object) -> Finding:
    return error(place, f'{path} is not an annotation file in the format of COCO: it {problem}')


def check_content(source: Source, path: str, content: dict) -> Iterator[Finding]:
    """Checks the whole content of an annotation file; later checks are left out where earlier ones find errors."""
    place = source.place
    objects = content.get('annotations', None if source.training else [])
    lists = dict(images=content.get('images'), annotations=objects, categories=content.get('categories'))
    for key, value in lists.items():
        if not isinstance(value, list):
            found = 'has no' if value is None else f'has a {type(value).__name__} as'
            yield _wrong_format(place, path, f'{found} list of {key}')
            return
    if not content['images']:
        yield error(place, f'{path} lists no images')
        return
    checks = (
        check_categories(place, path, content['categories']),
        check_images(place, path, content['images'], name_key(source)),
        check_classes(source, path, content['categories']),
        check_annotations(source, path, content),
    )
    yield from check_in_turn(checks)


def check_categories(place: str, path: str, categories: Sequence) -> Iterator[Finding]:
    """Ids and names of the categories: each once, ids as numbers."""
    for key in ('id', 'name'):
        missing = [each for each in categories if not isinstance(each, Mapping) or each.get(key) is None]
        if missing:
            yield error(
                place, f'{len(missing)} of {len(categories)} categories of {path} have no "{key}", as {missing[0]}'
            )
            return
        twice = repeated(str(each[key]) for each in categories)
        if twice:
            yield error(place, f'{path} has several categories of {key} {enumerate_names(twice)}: give each its own')


def is_nested(value: Any) -> bool:
    """Whether a value of a JSON is a list or an object, which cannot be an id."""
    return isinstance(value, (list, dict))


def name_key(source: Source) -> str:
    """The key of an image from which its file name is taken."""
    return 'coco_url' if source.is_a('mmdet', 'LVISV1Dataset') else 'file_name'


def check_images(place: str, path: str, images: Sequence, named: str) -> Iterator[Finding]:
    """Keys of the images, ids that are there twice, sizes that are none."""
    tally = Tally()
    for number, image in enumerate(images):
        if not isinstance(image, Mapping):
            tally.add('are not objects in braces', number)
            continue
        label = f'image {image.get(named, number)}'
        for key in (*IMAGE_KEYS, named):
            if image.get(key) is None:
                tally.add(f'have no "{key}"', label)
        if is_nested(image.get('id')):
            tally.add('have a list or an object as "id"', label)
        for key in ('height', 'width'):
            if image.get(key) is not None and not (is_number(image[key]) and image[key] > 0):
                tally.add(f'have a "{key}" that is not a number above 0', f'{label}: {image[key]!r}')
        if not isinstance(image.get(named, ''), str):
            tally.add(f'have a "{named}" that is not a text', label)
    if tally:
        yield from tally.errors(place, len(images), f'images of {path}')
        return
    twice = repeated(image['id'] for image in images)
    if twice:
        yield error(
            place,
            f'{path} gives the id {twice[0]!r} to several images, {len(twice)} such ids in all: MMDetection keeps one '
            'image of each; number the images, and set image_id of the annotations',
        )
    names = repeated(image[named] for image in images)
    if names:
        yield warning(place, f'{len(names)} of {len(images)} file names are in {path} more than once, as {names[0]}')


def check_classes(source: Source, path: str, categories: Sequence[Mapping]) -> Iterator[Finding]:
    """Whether MMDetection gives each category the label of its own name.

    It numbers the chosen categories in the file's order, whatever the order of ``metainfo.classes``.
    """
    classes, place = source.classes, source.place
    if classes is None:
        return
    names = [str(category['name']) for category in categories]
    given = source.named_classes is not None
    wanted = f'metainfo=dict(classes={write_tuple(names)})'
    origin = (
        f'the classes {enumerate_names(classes)}' if given else f'the {len(classes)} classes of {source.kind.__name__}'
    )
    missing = [name for name in classes if name not in names]
    if 'CLASSES' in (source.settings.get('metainfo') or {}):
        yield error(place, f'metainfo.CLASSES is not read by MMDetection 3: write {wanted}')
    elif missing and not given:
        yield error(
            place,
            f'metainfo is not set, so {origin} are taken, but the categories of {path} are {enumerate_names(names)}: '
            f'set {wanted} there and num_classes={len(names)} in each head',
        )
    elif len(missing) == len(classes):
        yield error(
            place,
            f'none of {origin} is a category of {path}, which has {enumerate_names(names)}: '
            f'set metainfo.classes to its names, {write_tuple(names)}, and num_classes of the heads to {len(names)}',
        )
    elif missing:
        yield error(place, _describe_missing(path, missing, names))
    else:
        order = library_order(source, categories)
        if order is not None and order != classes:
            yield error(
                place,
                f'metainfo.classes is {write_tuple(classes)}, but MMDetection numbers the categories in the order of '
                f'{path}, so that names and labels do not match: set metainfo=dict(classes={write_tuple(order)})',
            )


def _describe_missing(path: str, missing: Sequence[str], names: Sequence[str]) -> str:
    first, nearest = missing[0], nearest_name(missing[0], names)
    meant = f' (is {nearest!r} meant?)' if nearest else ''
    several = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
    return (
        f'class {first!r}{several} of metainfo.classes is not a category of {path}{meant}, which has '
        f'{enumerate_names(names, 10)}: MMDetection would shift the labels of all later classes by one; correct '
        'metainfo.classes, or add the category to the file'
    )


def library_order(source: Source, categories: Sequence[Mapping]) -> list[str] | None:
    """The names of the classes in the order in which MMDetection itself numbers a file's categories."""
    if source.is_a('mmdet', 'LVISV05Dataset'):  # takes all categories, whatever the classes are
        return [str(category['name']) for category in categories]
    api = source.kind.COCOAPI()
    api.dataset = dict(categories=list(categories))
    ids = api.get_cat_ids(cat_names=source.classes)
    names = {category['id']: str(category['name']) for category in categories}
    return [names[number] for number in ids]


def check_annotations(source: Source, path: str, content: Mapping) -> Iterator[Finding]:
    """Keys, ids and boxes of the annotations; whether there are objects to train on."""
    place, tally, lost, with_masks = source.place, Tally(), Tally(), source.loads('with_mask')
    objects = content.get('annotations') or []
    image_ids = {image['id'] for image in content['images']}
    names = {category['id']: str(category['name']) for category in content['categories']}
    for number, each in enumerate(objects):
        if not isinstance(each, Mapping):
            tally.add('are not objects in braces', number)
            continue
        label = f'annotation {each.get("id", number)!r}'
        nested = [key for key in ('id', 'image_id', 'category_id') if is_nested(each.get(key))]
        if nested:
            tally.add(f'have a list or an object as "{nested[0]}"', label)
            continue
        for fault in find_faults(each, names):
            tally.add(fault, label)
        if with_masks and not each.get('segmentation'):
            tally.add(f'have no segmentation: {WITHOUT_MASKS}', label)
        if each.get('image_id') not in image_ids:
            lost.add('are of no image of the file', f'{label} of image_id {each.get("image_id")!r}')
        elif each.get('category_id') not in names:
            lost.add('are of no category of the file', f'{label} of category_id {each.get("category_id")!r}')
    if tally:
        yield from tally.errors(place, len(objects), f'annotations of {path}')
        return
    twice = repeated(each['id'] for each in objects)
    if twice:
        yield error(
            place, f'{path} gives the id {twice[0]!r} to several annotations, {len(twice)} such ids in all: number them'
        )
    for kind, count, example in lost:
        message = f'{count} of {len(objects)} annotations of {path}, as {example}, {kind} and are never read'
        yield judge(place, count, len(objects), message)
    used = {each['category_id'] for each in objects if each['image_id'] in image_ids}
    yield from _check_used(source, path, names, used)


def _check_used(source: Source, path: str, names: Mapping, used: Collection) -> Iterator[Finding]:
    """Whether the objects of a file are of the classes, given the names of its categories and the ids in use."""
    place, classes = source.place, source.classes or list(names.values())
    if not any(names.get(number) in classes for number in used):
        message = f'{path} has no object of the classes {enumerate_names(classes)}'
        if source.training:
            yield error(place, message)
        elif used:
            yield warning(place, f'{message}: no metric will have a value')
    elif source.training and source.named_classes is not None:
        empty = [name for number, name in names.items() if name in classes and number not in used]
        yield from find_unlearnt(place, empty, len(classes), f'object in {path}')


def find_faults(annotation: Mapping, categories: Mapping) -> Iterator[str]:
    """What MMDetection's reader would fail on in one annotation."""
    for key in ANNOTATION_KEYS:
        if annotation.get(key) is None:
            yield f'have no "{key}"'
    category = annotation.get('category_id')
    if category is not None and category not in categories and str(category) in map(str, categories):
        yield f'have a {type(category).__name__} as "category_id", of another type than the ids of the categories'
    box = annotation.get('bbox')
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(is_number(side) for side in box)):
        yield 'have a "bbox" that is not four numbers [x, y, width, height]'
    if annotation.get('area') is not None and not is_number(annotation['area']):
        yield 'have an "area" that is not a number'


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_evaluation(place: str, path: str, metric: Mapping) -> Iterator[Finding]:
    """What pycocotools would fail on at the end of an epoch, or count wrongly, in the file of a metric."""
    path = osp.expanduser(path)
    if type_name(metric) != 'CocoMetric' or metric.get('format_only') or not osp.isfile(path) or not is_small(path):
        return
    try:
        content = read_annotations(path)
    except FormatError as problem:
        yield _wrong_format(place, path, problem)
        return
    objects = [each for each in content.get('annotations') or [] if isinstance(each, Mapping)]
    wanted = metric.get('metric', 'bbox')
    with_masks = 'segm' in ([wanted] if isinstance(wanted, str) else wanted)
    tally = Tally()
    for each in objects:
        label = f'annotation {each.get("id")!r}'
        if 'iscrowd' not in each:
            tally.add('have no "iscrowd", which pycocotools needs: add "iscrowd": 0', label)
        if with_masks and not each.get('segmentation'):
            tally.add('have no segmentation, which metric "segm" needs: set metric=bbox, or add it', label)
        elif with_masks and any(len(part) < 6 for part in _polygons(each['segmentation'])):
            tally.add('have a polygon of less than three points, which metric "segm" cannot use', label)
    yield from tally.errors(place, len(objects), f'annotations of {path}')
    if not tally and any(each.get('id') == 0 for each in objects):
        message = f'{path} has an annotation of id 0, of which pycocotools counts a match as a miss'
        yield warning(place, f'{message}: number the annotations from 1')


def _polygons(segmentation: Any) -> list:
    return [part for part in segmentation if isinstance(part, list)] if isinstance(segmentation, list) else []
