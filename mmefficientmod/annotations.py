"""Looks into small data sets before a training: what is wrong there shows in MMDetection as a traceback or a hang."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping

MOST_BYTES = 50 * 2**20  # of an annotation file; COCO's own ones are larger, known to be right, and slow to read


class DataError(ValueError):
    """Data that cannot be trained on; the message is one line."""


def check_content(place: str, kind: str, dataset: Mapping, paths: Mapping[str, str]) -> None:
    """Raises DataError for data in which there is nothing to train on, as far as a short look shows.

    Args:
        place (str): The data set's dotted place in the config.
        kind (str): Name of its class.
        dataset (Mapping): Its settings.
        paths (Mapping[str, str]): Option -> the local file or folder that it names.
    """
    ann_file, images = paths.get('ann_file'), paths.get('data_prefix.img_path')
    suffix = dataset.get('img_suffix') or {'ADE20KDataset': '.jpg'}.get(kind)
    try:
        if kind == 'CocoDataset' and ann_file and os.path.isfile(ann_file):
            check_coco(ann_file, (dataset.get('metainfo') or {}).get('classes'))
        if images and not ann_file and suffix and os.path.isdir(images):
            check_images(images, suffix)
    except DataError as error:
        raise DataError(f'{place}: {error}') from None


def check_classes(datasets: Iterable[tuple[str, Mapping]], nodes: Iterable[tuple[str, Mapping]]) -> None:
    """Raises DataError for a head that has fewer classes than the training data name.

    Args:
        datasets (Iterable): Dotted place and settings of each data set.
        nodes (Iterable): Dotted place and settings of each part of the model.
    """
    heads = [(place, node) for place, node in nodes if 'head' in place.rpartition('.')[2]]
    for place, dataset in datasets:
        classes = (dataset.get('metainfo') or {}).get('classes')
        if not isinstance(classes, (list, tuple)):
            continue
        for head, node in heads:
            number = node.get('num_classes')
            if isinstance(number, int) and number < len(classes):
                raise DataError(
                    f'{head}.num_classes is {number}, but {place}.metainfo names {len(classes)} classes: add '
                    f'--cfg-options {head}.num_classes={len(classes)}'
                )


def check_coco(path: str, classes: Collection[str] | None) -> None:
    """Checks an annotation file in COCO's format, if it is not large.

    Args:
        path (str): A local file.
        classes (Collection[str], optional): Names of the classes in the config, None if it does not give them.

    Raises:
        DataError: If it is no such file, has no images, or no object of any of the classes.
    """
    if os.path.getsize(path) > MOST_BYTES:
        return
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        images = content['images']
        names = {category['id']: category['name'] for category in content['categories']}
        used = {annotation['category_id'] for annotation in content['annotations']}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path} is no annotation file in the format of COCO, with images, annotations and categories '
            f'({type(error).__name__}: {error})'
        ) from error
    if not images:
        raise DataError(f'{path} lists no images: there is nothing to train on')
    known = sorted(names.values())
    if classes is not None and not set(classes) & set(known):
        raise DataError(
            f'none of the classes {_enumerate(classes)} is a category of {path}, which has {_enumerate(known)}: '
            'set metainfo.classes to its names, and num_classes of the heads to their number'
        )
    if not any(classes is None or names.get(number) in classes for number in used):
        raise DataError(f'{path} has no object of the classes {_enumerate(classes or known)}')


def check_images(folder: str, suffix: str) -> None:
    """Raises DataError for a folder without any file of a suffix, at any depth: some samplers would wait forever."""
    for _, _, files in os.walk(folder, followlinks=True):
        if any(name.endswith(suffix) for name in files):
            return
    raise DataError(f'{folder} holds no file that ends in {suffix}: put the images there, or set img_suffix')


def _enumerate(names: Collection[str], most: int = 6) -> str:
    shown = list(names)
    return ', '.join(map(str, shown[:most])) + (', ...' if len(shown) > most else '')
