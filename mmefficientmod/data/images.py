"""Image files of data sets: whether they are there, can be read, have the size that the annotations say."""

from __future__ import annotations

import contextlib
import hashlib
import os
import os.path as osp
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..utils import IMAGE_SUFFIXES, UserError, enumerate_names
from .built import Budget, apply, find_transform
from .files import open_image, read_header
from .findings import Finding, Tally, error, judge, warning

MOST_DECODED = 50  # images of a data set that are decoded


def check_files(place: str, dataset: Any, entries: Sequence[Mapping]) -> list[Finding]:
    """Checks the image files of a built data set: there, readable, of the annotated size."""
    paths = [entry['img_path'] for entry in entries if isinstance(entry.get('img_path'), str)]
    if any('://' in path for path in paths[:1]):
        return []
    missing = [path for path in paths if not osp.exists(path)]
    if missing:
        return [error(place, describe_missing('images', missing, len(paths)))]
    tally, count = Tally(), 0
    for entry in Budget(0.5).within(entries):
        _look(entry, tally, dataset)
        count += 1
    return tally.errors(place, count, 'images') or list(check_decoding(place, dataset, entries))


def describe_missing(what: str, missing: Sequence[str], total: int) -> str:
    """That files are missing, and what is there in their place."""
    path = missing[0]
    hint = 'put or link them there, or set data_root and data_prefix'
    folder = osp.dirname(path)
    if '\\' in path:
        hint = 'the names have backslashes: write / in file_name'
    elif not osp.isdir(folder):
        hint = f'the folder {folder} is missing: {hint}'
    else:
        stem = osp.splitext(osp.basename(path))[0]
        alike = re.compile(re.escape(stem) + r'([^0-9a-zA-Z].*)?', re.IGNORECASE)
        near = [name for name in os.listdir(folder) if alike.fullmatch(name)]
        hint = f'there is {enumerate_names(sorted(near))}: set the suffix, or rename the files' if near else hint
    return f'{len(missing)} of {total} {what} do not exist, as {path}; {hint}'


def _look(entry: Mapping, tally: Tally, dataset: Any) -> None:
    """Compares one image's header with its entry."""
    path = entry['img_path']
    if not osp.getsize(path):
        tally.add('are empty files', path)
        return
    try:
        width, height, turned = read_header(path)
    except UserError:
        if not _decodes(dataset, entry):  # Pillow may know fewer formats than the pipeline
            tally.add('cannot be read', path)
        return
    wanted = entry.get('width'), entry.get('height')
    if None in wanted:
        return
    turned = turned and not _ignores_orientation(dataset)
    loaded = (height, width) if turned else (width, height)
    if loaded != wanted:
        label = f'{path}, which is {loaded[0]} x {loaded[1]} and annotated as {wanted[0]} x {wanted[1]}'
        if loaded == wanted[::-1] and turned:
            kind = 'are turned by their EXIF orientation when they are loaded, unlike the annotations: turn the files'
        elif loaded == wanted[::-1]:
            kind = 'have width and height swapped in the annotations'
        else:
            kind = 'have another size than the annotations say'
        tally.add(kind, label)


def _ignores_orientation(dataset: Any) -> bool:
    load = find_transform(dataset, 'LoadImageFromFile')
    return (
        'ignore_orientation' in str(getattr(load, 'color_type', '')) or getattr(load, 'color_type', '') == 'unchanged'
    )


def _decodes(dataset: Any, entry: Mapping) -> bool:
    load = find_transform(dataset, 'LoadImageFromFile')
    try:
        return load is None or apply([load], entry) is not None
    except Exception:  # of whatever decoder the pipeline names
        return False


def check_decoding(place: str, dataset: Any, entries: Sequence[Mapping]) -> Iterator[Finding]:
    """Decodes some images to their end: a file that was cut off has a sound header."""
    if find_transform(dataset, 'LoadImageFromFile') is None:
        return
    step = max(1, len(entries) // MOST_DECODED)
    broken, count = [], 0
    for entry in Budget(0.3).within(entries[::step]):
        count += 1
        try:
            open_image(entry['img_path'])
        except UserError:
            with contextlib.suppress(UserError):  # without a header for Pillow, the pipeline has read it above
                read_header(entry['img_path'])
                broken.append(entry['img_path'])
    if broken:
        yield warning(place, f'{len(broken)} of {count} images that were decoded are damaged, as {broken[0]}')


def check_unread(
    place: str, folder: str, suffixes: Sequence[str], option: str, ignore_case: bool = False
) -> Iterator[Finding]:
    """Images of a folder that a data set passes over because of their suffix."""
    others: dict[str, str] = {}
    count = read = 0
    for name in walk_images(folder):
        if (name.lower() if ignore_case else name).endswith(tuple(suffixes)):
            read += 1
        else:
            count += 1
            others.setdefault(osp.splitext(name)[1], name)
    if count:
        what = f'{count} of {count + read} images in {folder} do not end in {" or ".join(suffixes)} and are never read'
        examples = enumerate_names(others.values(), 3)
        yield judge(place, count, count + read, f'{what}, as {examples}: rename or convert them, or set {option}')


def walk_images(folder: str) -> Iterator[str]:
    """The image files below a folder, as paths relative to it."""
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.'):
                yield osp.relpath(osp.join(where, name), folder)


def find_shared(place: str, paths: Sequence[str], others: Sequence[str], other_place: str) -> Iterator[Finding]:
    """Images of a data set that are in the one that is trained on, too, by content: files of equal size are read."""
    known = set(map(osp.realpath, others))
    by_size: dict[int, list[str]] = {}
    for path in others:
        by_size.setdefault(osp.getsize(path), []).append(path)
    shared, count = [], 0
    for path in Budget(0.5).within(paths):
        count += 1
        same = osp.realpath(path) in known
        if same or any(digest(each) == digest(path) for each in by_size.get(osp.getsize(path), ())):
            shared.append(path)
    if shared:
        message = f'{len(shared)} of {count} images are in {other_place} as well, as {shared[0]}'
        yield warning(place, f'{message}: the metrics will be too good')


def digest(path: str) -> bytes:
    """What tells the content of one file from that of others."""
    with open(path, 'rb') as file:
        return hashlib.blake2b(file.read(), digest_size=16).digest()
