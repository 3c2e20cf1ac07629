"""Finds images and reads them as 8-bit BGR, and names what is wrong with those that cannot be read."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from glob import escape, glob
from pathlib import Path

import cv2
import numpy as np

from ..utils import IMAGE_SUFFIXES, UserError

# In a JPEG's entropy-coded data, FF before anything but 00 and the restart markers begins the next segment.
_NEXT_SEGMENT = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_SCAN, _END = 0xDA, 0xD9


# Finding -------------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Files that were found, and how many others were left out, by suffix."""

    paths: list[Path] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)

    def describe_left_out(self) -> str:
        """For example ``'3 files are not images: 2 .txt, 1 .json'``; empty if there are none."""
        total = sum(self.left_out.values())
        listed = ', '.join(f'{count} {suffix or "without a suffix"}' for suffix, count in self.left_out.most_common(5))
        return f'{total} file{"s are" if total > 1 else " is"} left out: {listed}' if total else ''


def find_files(text: str, suffixes: Collection[str] = IMAGE_SUFFIXES, results: Path | None = None) -> Found:
    """Finds a file by its name, or all with some suffixes in a folder and its subfolders, or by a glob pattern.

    Hidden files and folders are passed over. Links to folders are followed, unless they lead back to where they are.

    Args:
        text (str): The name, the folder or the pattern.
        suffixes (Collection[str]): In lower case. Defaults to those of images.
        results (Path, optional): A resolved folder whose files are not counted as left out.

    Raises:
        UserError: If the file or folder does not exist, and the text is not a pattern.
    """
    path = Path(text)
    if path.is_file():
        return Found([path])
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f'{text} is not a regular file: give an image, a folder or a pattern')
    if path.is_dir():
        files = sorted(file for each in _folders(path) for file in each.iterdir() if _is_wanted(file))
    else:
        files = sorted({file for file in _matches(text) if _is_wanted(file)})
        if not files and not set(text) & set('*?['):
            raise UserError(f'{text} does not exist: give an image, a folder or a pattern')
    found = Found()
    for file in files:
        if file.suffix.lower() in suffixes:
            found.paths.append(file)
        elif results is None or results not in Path(os.path.realpath(file)).parents:
            found.left_out[file.suffix.lower()] += 1
    return found


def _folders(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder and the folders in it, without hidden ones and without links that lead back to where they are."""
    real = os.path.realpath(folder)
    if real in above:
        return
    yield folder
    for path in folder.iterdir():
        if path.is_dir() and not _is_hidden(path):
            yield from _folders(path, (*above, real))


def _matches(pattern: str) -> Iterator[Path]:
    """What a glob pattern names; unlike ``glob``, ``**`` ends where links lead back to where they are."""
    parts = Path(pattern).parts
    if '**' not in parts:
        yield from map(Path, glob(pattern))
        return
    place = parts.index('**')
    rest = parts[place + 1 :] or ('*',)
    for start in glob(str(Path(*parts[:place]))):
        for folder in _folders(Path(start)) if os.path.isdir(start) else ():
            yield from _matches(str(Path(escape(str(folder)), *rest)))


def _is_wanted(path: Path) -> bool:
    """Whether it is a file, or a link that leads nowhere, which is to be named when it is read."""
    return (path.is_file() or not path.exists()) and not _is_hidden(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith('.')


def find_images(paths: Sequence[str], option: str) -> list[Path]:
    """The images that an option of a command line names: files, folders, patterns.

    Raises:
        UserError: If there is none under a name.
    """
    images: list[Path] = []
    for text in paths:
        try:
            found = find_files(text).paths
        except UserError as error:
            raise UserError(f'{option} {error}') from None
        if not found:
            raise UserError(f'{option} {text}: no image is there; known are {", ".join(IMAGE_SUFFIXES)}')
        images += found
    return images


# Reading -------------------------------------------------------------------------------------------------------------


def read_image(path: Path) -> np.ndarray:
    """Reads an image: upright, 8 bits, without transparency, whatever it is stored as; of an animation, the first one.

    Returns:
        np.ndarray: BGR (H, W, 3), uint8.

    Raises:
        UserError: If the file is missing, empty, cut off, not an image, or of a format without a reader.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error
    if not data:
        raise UserError('is empty')
    if is_cut_off(data):
        raise UserError('is cut off: its end is missing')
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UserError(f'cannot be read: {error.err or error}') from error
    if image is None:
        kind = _modern_format(data)
        if kind is None:
            raise UserError('is damaged, or no image that OpenCV reads')
        image = _read_by_pillow(data, kind)
    return image


def _modern_format(data: bytes) -> str | None:
    """The name of a format that only some builds of OpenCV read."""
    if data[4:8] == b'ftyp':
        return 'AVIF' if data[8:12] in (b'avif', b'avis') else 'HEIC'
    if data.startswith(b'GIF8'):
        return 'GIF'
    return 'JPEG 2000' if data.startswith((b'\0\0\0\x0cjP', b'\xff\x4f\xff\x51')) else None


def _read_by_pillow(data: bytes, kind: str) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError(f'is {kind}, which this OpenCV does not read: pip install pillow') from None
    if kind == 'HEIC':
        try:
            import pillow_heif
        except ImportError:
            raise UserError('is HEIC, for which no reader is installed: pip install pillow-heif') from None
        pillow_heif.register_heif_opener()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.ascontiguousarray(np.array(ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1])
    except Exception as error:  # Pillow's readers raise many kinds
        raise UserError(f'is {kind}, and damaged or not read by the installed OpenCV and Pillow ({error})') from None


def is_cut_off(data: bytes) -> bool:
    """Whether the end of a JPEG or a PNG is missing, of which OpenCV returns what there is, the rest in grey."""
    if data.startswith(b'\x89PNG'):
        return b'IEND' not in data
    if not data.startswith(b'\xff\xd8'):
        return False
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return False  # not as it should be: the decoder decides
        marker = data[place + 1]
        if marker == 0xFF:  # a filler
            place += 1
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], 'big')
        if marker == _SCAN:
            segment = _NEXT_SEGMENT.search(data, place)
            if segment is None:
                return True
            place = segment.start()
            if data[place + 1] == _END:
                return False
    return True
