"""Looks into small data sets before a training: what is wrong there shows in MMDetection as a traceback or a hang."""

from __future__ import annotations

import json
import os
import os.path as osp
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from mmengine.config import Config

from ...codebases.config import class_names
from ...codebases.nodes import exists, find_datasets, find_dicts, has_own_code, is_known, is_local, refuse, type_name
from ...utils import UserError
from .classifier import find_label_problem

IMAGE_PREFIXES = ('img', 'img_path', 'sub_data_root')  # read by every pipeline; other folders only by some


DOWNLOADED_DATASETS = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check_data(config: Config, splits: Iterable[str]) -> None:
    """Raises UserError where a data set's root, annotation file or image folder is missing on this machine.

    Data sets of the user's own code are not judged: they may download, or find their files in another way.
    """
    if has_own_code(config):
        return
    for split in splits:
        for place, dataset in find_datasets(config.get(f'{split}_dataloader'), f'{split}_dataloader'):
            _check_dataset(place, dataset, split == 'train')
        for place, metric in find_dicts(config.get(f'{split}_evaluator'), f'{split}_evaluator'):
            if is_known(metric) and is_local(metric):
                _require('annotation file', metric.get('ann_file'), place, 'ann_file')


def _check_dataset(place: str, dataset: Mapping, training: bool) -> None:
    if not is_known(dataset) or not is_local(dataset) or type_name(dataset) in DOWNLOADED_DATASETS:
        return
    paths = {}  # option -> what it names and where that is
    if dataset.get('ann_file'):
        paths['ann_file'] = 'annotation file', dataset['ann_file']
    prefixes = dataset.get('data_prefix')
    if isinstance(prefixes, Mapping):
        loads_labels = any('LoadAnnotations' in type_name(node) for _, node in find_dicts(dataset.get('pipeline')))
        needed = (*IMAGE_PREFIXES, 'seg_map_path') if loads_labels else IMAGE_PREFIXES
        paths.update({f'data_prefix.{key}': ('data folder', prefixes[key]) for key in needed if key in prefixes})
    else:
        paths['data_prefix'] = 'data folder', prefixes
    paths = {option: (kind, path) for option, (kind, path) in paths.items() if isinstance(path, str)}

    root = dataset.get('data_root')
    root = root if isinstance(root, str) else ''
    if type_name(dataset) == 'ImageNet' and dataset.get('split'):
        folder = osp.join(osp.expanduser(root), str(dataset.get('data_prefix') or dataset['split']))
        refuse(find_label_problem(folder, root, dataset))
    if not paths or not all('://' in path or osp.isabs(osp.expanduser(path)) for _, path in paths.values()):
        _require('data root', root, place, 'data_root')
    for option, (kind, path) in paths.items():
        _require(kind, osp.join(root, osp.expanduser(path)), place, option)
    found = {option: osp.join(root, osp.expanduser(path)) for option, (_, path) in paths.items()}
    check_content(place, type_name(dataset), dataset, found, training)


def _require(kind: str, path: object, place: str, option: str) -> None:
    if isinstance(path, str) and path and not exists(path):
        raise UserError(
            f'{kind} {path} does not exist: put or link the data there, or point to it by '
            f'--cfg-options {place}.{option}=PATH'
        )


MOST_BYTES = 50 * 2**20  # of an annotation file; COCO's own ones are larger, known to be right, and slow to read
BINARY_HEADS = ('STDCHead',)  # tell boundaries from the rest, whatever the classes are


def check_content(place: str, kind: str, dataset: Mapping, paths: Mapping[str, str], training: bool = True) -> None:
    """Raises UserError for data that cannot be used, as far as a short look shows.

    Args:
        place (str): The data set's dotted place in the config.
        kind (str): Name of its class.
        dataset (Mapping): Its settings.
        paths (Mapping[str, str]): Option -> the local file or folder that it names.
        training (bool): Whether it is trained on, which needs objects. Defaults to True.
    """
    ann_file, images = paths.get('ann_file'), paths.get('data_prefix.img_path')
    suffix = dataset.get('img_suffix') or {'ADE20KDataset': '.jpg'}.get(kind)
    try:
        if kind == 'CocoDataset' and ann_file and os.path.isfile(ann_file):
            check_coco(ann_file, _known_classes(dataset), training)
        if images and not ann_file and suffix and os.path.isdir(images):
            check_images(images, suffix)
    except UserError as error:
        raise UserError(f'{place}: {error}') from None


def _known_classes(dataset: Mapping) -> Sequence[str] | None:
    """The same before a training: None for a file elsewhere.

    Raises:
        UserError: For any other text: MMEngine would take each of its letters for a class.
    """
    try:
        classes = class_names(dataset)
    except (OSError, ValueError) as error:
        raise UserError(f'metainfo.classes cannot be read ({error})') from error
    if isinstance(classes, str) and '://' not in classes:
        raise UserError(
            f'metainfo.classes is the text {classes!r}: write ({classes!r},) for one class, or name a file that exists'
        )
    return None if isinstance(classes, str) else classes


def check_classes(datasets: Iterable[tuple[str, Mapping]], nodes: Iterable[tuple[str, Mapping]]) -> None:
    """Raises UserError for a head that has fewer classes than the training data name, or if those are no list.

    Args:
        datasets (Iterable): Dotted place and settings of each data set.
        nodes (Iterable): Dotted place and settings of each part of the model.
    """
    heads = [(place, node) for place, node in nodes if _tells_classes(place, node)]
    for place, dataset in datasets:
        try:
            classes = _known_classes(dataset)
        except UserError as error:
            raise UserError(f'{place}.{error}') from None
        if 'Panoptic' in type_name(dataset):  # its heads tell things alone
            classes = dataset['metainfo'].get('thing_classes') if classes else None
        if not isinstance(classes, (list, tuple)):
            continue
        for head, node in heads:
            number = node.get('num_classes')
            if isinstance(number, int) and number < len(classes):
                raise UserError(
                    f'{head}.num_classes is {number}, but {place}.metainfo names {len(classes)} classes: add '
                    f'--cfg-options {head}.num_classes={len(classes)}'
                )


def _tells_classes(place: str, node: Mapping) -> bool:
    """Whether a part of a model is a head that tells the classes of the data from one another."""
    name = re.sub(r'(\.\d+)+$', '', place).rpartition('.')[2]  # of the list, where a model has several such heads
    return 'head' in name and name != 'rpn_head' and type_name(node) not in BINARY_HEADS


def check_coco(path: str, classes: Collection[str] | None, training: bool) -> None:
    """Checks an annotation file in COCO's format, if it is not large.

    Args:
        path (str): A local file.
        classes (Collection[str], optional): Names of the classes in the config, None if it does not give them.
        training (bool): Whether objects are needed. Tests need none: COCO's test-dev has not even the list of them.

    Raises:
        UserError: If it is no such file, or has no images, none of the classes, or no object of these to train on.
    """
    if os.path.getsize(path) > MOST_BYTES:
        return
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        images = content['images']
        names = {category['id']: category['name'] for category in content['categories']}
        objects = content['annotations'] if training else content.get('annotations', [])
        used = {annotation['category_id'] for annotation in objects}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} is no annotation file in the format of COCO, with images, annotations and categories '
            f'({type(error).__name__}: {error})'
        ) from error
    if not images:
        raise UserError(f'{path} lists no images')
    known = sorted(names.values())
    if classes is not None and not set(classes) & set(known):
        raise UserError(
            f'none of the classes {_enumerate(classes)} is a category of {path}, which has {_enumerate(known)}: '
            'set metainfo.classes to its names, and num_classes of the heads to their number'
        )
    if training and not any(classes is None or names.get(number) in classes for number in used):
        raise UserError(f'{path} has no object of the classes {_enumerate(classes or known)}')


def check_images(folder: str, suffix: str) -> None:
    """Raises UserError for a folder without any file of a suffix, at any depth: some samplers would wait forever."""
    for _, _, files in os.walk(folder, followlinks=True):
        if any(name.endswith(suffix) for name in files):
            return
    raise UserError(f'{folder} holds no file that ends in {suffix}: put the images there, or set img_suffix')


def _enumerate(names: Collection[str], most: int = 6) -> str:
    shown = list(names)
    return ', '.join(map(str, shown[:most])) + (', ...' if len(shown) > most else '')
