"""Data sets of MMPreTrain: a folder for each class, or a list of images and labels."""

from __future__ import annotations

import os
import os.path as osp
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.fileio import list_from_file

from ..utils import enumerate_names
from .findings import Finding, error, find_unlearnt, nearest_name, warning, write_tuple
from .images import check_unread
from .sources import Source

FEW = 50  # classes up to which each name is compared with each folder
SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'}


def is_folders(kind: type | None) -> bool:
    """Whether a class of data sets is MMPreTrain's for folders and lists."""
    return any(each.__module__ == 'mmpretrain.datasets.custom' for each in getattr(kind, '__mro__', ()))


def check_before(source: Source) -> Iterator[Finding]:
    """Checks the folders of the classes, or the list, before MMPreTrain reads them."""
    listed, folder = source.path('ann_file'), _image_folder(source)
    root, split = source.settings.get('data_root') or '', source.settings.get('split')
    if source.option('with_label') is False or split == 'test':
        return
    if split and not listed:  # ImageNet's list, which MMPreTrain takes where it exists
        listed = osp.join(osp.expanduser(root), 'meta', f'{split}.txt')
    if listed and osp.isfile(listed):
        yield from check_list(source.place, listed)
    elif folder and osp.isdir(folder) and not source.settings.get('ann_file'):
        yield from check_folders(source, folder)


def _image_folder(source: Source) -> str | None:
    prefix = source.settings.get('data_prefix')
    if isinstance(prefix, Mapping):
        return source.path('data_prefix.img_path')
    if not prefix and source.settings.get('split'):  # ImageNet's folders are named as its splits
        return osp.join(osp.expanduser(source.settings.get('data_root') or ''), source.settings['split'])
    if isinstance(prefix, str) and prefix:
        return source.path('data_prefix')
    root = source.settings.get('data_root')
    return osp.expanduser(root) if isinstance(root, str) and root else None


def check_list(place: str, path: str) -> Iterator[Finding]:
    """Lines of an annotation file: an image and a number each."""
    try:
        lines = list_from_file(path)
    except (OSError, ValueError) as problem:
        yield error(place, f'{path} cannot be read ({problem})')
        return
    if not any(line.strip() for line in lines):
        yield error(place, f'{path} lists no images')
        return
    if path.endswith('.json'):
        return
    wrong = [(number, line) for number, line in enumerate(lines, 1) if not _is_entry(line)]
    if wrong:
        number, line = wrong[0]
        yield error(
            place,
            f'{len(wrong)} of {len(lines)} lines of {path} are not an image, a space and the number of its class, as '
            f'line {number}: {line[:60]!r}',
        )


def _is_entry(line: str) -> bool:
    parts = line.strip().rsplit(' ', 1)
    return len(parts) == 2 and parts[1].lstrip('-').isdecimal()


def check_folders(source: Source, folder: str) -> Iterator[Finding]:
    """Whether there is one folder for each class."""
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))
    place, classes = source.place, source.classes
    if not found:
        split = source.settings.get('split')
        listed = osp.join(source.settings.get('data_root') or '', 'meta', f'{split}.txt') if split else 'ann_file'
        message = f'the images of {folder} have no labels: put those of each class into a folder of its own'
        yield error(place, f'{message}, or list them with their labels in {listed}')
    elif set(found) <= SPLITS:
        yield error(
            place, f'the folders of {folder}, {", ".join(found)}, are not classes: set data_prefix to one of them'
        )
    elif classes is not None and len(classes) != len(found):
        own = source.named_classes is not None
        names = (
            f'metainfo names {len(classes)} classes' if own else f'{source.kind.__name__} has {len(classes)} classes'
        )
        missing = [name for name in classes if name not in found] if own else []
        extra = [name for name in found if name not in classes] if own else []
        details = ''.join(
            f', {text} {enumerate_names(items)}'
            for text, items in (('without a folder:', missing), ('not named:', extra))
            if items
        )
        kind = '' if own or source.kind_name == 'CustomDataset' else "type='CustomDataset', "
        yield error(
            place,
            f'{names}, but {folder} has {len(found)} folders, {enumerate_names(found)}{details}: set {kind}'
            f'metainfo=dict(classes={write_tuple(found)}) and model.head.num_classes={len(found)}',
        )


def compare(place: str, dataset: Any, entries: Sequence[Mapping], training: bool) -> Iterator[Finding]:
    """Compares the labels of a built data set with its folders and its names of classes."""
    classes = list(dataset.metainfo.get('classes') or [])
    folders = getattr(dataset, 'folder_to_idx', None)
    if folders and classes:
        yield from judge_order(place, dataset, list(folders), classes)
    labels = Counter(int(label) for entry in entries for label in _labels(entry))
    if classes and labels:
        wrong = list(judge_labels(place, dataset, labels, classes, training and len(entries) == len(dataset)))
        yield from wrong
        if not folders and not wrong:
            yield from judge_places(place, dataset, entries, classes)
    if folders is not None and osp.isdir(dataset.img_prefix):
        yield from find_unread(place, dataset)


def count_classes(dataset: Any, entries: Sequence[Mapping]) -> tuple[int, bool]:
    """The number of classes of a built data set, and whether they have names; by the labels of a list without names."""
    classes = dataset.metainfo.get('classes')
    if classes:
        return len(classes), True
    return 1 + max((int(label) for each in entries for label in _labels(each)), default=0), False


def _labels(entry: Mapping) -> Sequence:
    label = entry.get('gt_label', ())
    return [label] if not hasattr(label, '__len__') else label


def judge_order(place: str, dataset: Any, folders: Sequence[str], classes: Sequence[str]) -> Iterator[Finding]:
    """Names that are those of folders, in another order than MMPreTrain numbers the folders."""
    wrong = [name for name, folder in zip(classes, folders) if name != folder and name in folders]
    if wrong:
        yield error(
            place,
            f'metainfo.classes is {write_tuple(classes)}, but MMPreTrain numbers the folders of '
            f'{dataset.img_prefix} in the order of their names: set metainfo=dict(classes={write_tuple(folders)})',
        )
        return
    for name, folder in zip(classes, folders) if len(classes) <= FEW else ():
        nearest = nearest_name(name, folders) if name != folder else folder
        if nearest not in (None, folder):
            message = f'class {name!r} stands for the folder {folder}, but looks like {nearest}'
            yield error(place, f'{message}: order metainfo.classes as the folders, {write_tuple(folders)}')
            return


def judge_places(place: str, dataset: Any, entries: Sequence[Mapping], classes: Sequence[str]) -> Iterator[Finding]:
    """Labels of a list that contradict the folders of its images, where these have the names of classes."""
    numbers = {name: number for number, name in enumerate(classes)}
    named = [entry for entry in entries if _folder_of(entry) in numbers and not isinstance(entry.get('gt_label'), list)]
    wrong = [entry for entry in named if entry['gt_label'] != numbers[_folder_of(entry)]]
    if len(named) == len(entries) and len(wrong) > len(named) / 2:
        path, label = wrong[0]['img_path'], int(wrong[0]['gt_label'])
        yield error(
            place,
            f'{len(wrong)} of {len(named)} labels of {dataset.ann_file} contradict the folders of the images, as '
            f'{path} with {label}, which is {classes[label]}: order metainfo.classes as the numbers of the list',
        )


def _folder_of(entry: Mapping) -> str:
    return osp.basename(osp.dirname(str(entry.get('img_path', ''))))


def judge_labels(place: str, dataset: Any, labels: Counter, classes: Sequence[str], whole: bool) -> Iterator[Finding]:
    """Numbers outside the classes, and classes without an image."""
    beyond = sorted(label for label in labels if not 0 <= label < len(classes))
    source = dataset.ann_file or dataset.img_prefix
    if beyond:
        hint = 'the numbers start at 0' if min(labels) == 1 and beyond == [len(classes)] else 'name all classes'
        yield error(
            place,
            f'{sum(labels[label] for label in beyond)} of {sum(labels.values())} labels of {source} are outside the '
            f'classes, as {beyond[-1]}; expected are 0 to {len(classes) - 1}: {hint}',
        )
        return
    if whole:
        empty = [name for number, name in enumerate(classes) if number not in labels]
        yield from find_unlearnt(place, empty, len(classes), f'image in {source}')


def find_unread(place: str, dataset: Any) -> Iterator[Finding]:
    """Images in no class's folder, and images of other suffixes."""
    folder = dataset.img_prefix
    loose = [entry.name for entry in os.scandir(folder) if entry.is_file() and dataset.is_valid_file(entry.name)]
    yield from check_unread(place, folder, sorted(dataset.extensions), 'extensions', ignore_case=True)
    if loose:
        message = f'{len(loose)} images in {folder} are in no folder of a class and are never read, as {loose[0]}'
        yield warning(place, message)
