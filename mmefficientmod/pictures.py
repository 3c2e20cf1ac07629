"""Reads pictures as 8-bit BGR, and names what is wrong with those that cannot be read; needs NumPy and OpenCV alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

PICTURES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
# In a JPEG's entropy-coded data, FF before anything but 00 and the restart markers begins the next segment.
_NEXT_SEGMENT = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_SCAN, _END = 0xDA, 0xD9


class SourceError(Exception):
    """A file that cannot be read; the message says what is wrong with it."""


def is_wanted(path: Path, folder: Path, suffixes: Collection[str] = PICTURES) -> bool:
    """Whether a path below a folder is a file with one of these suffixes, without a hidden part below the folder."""
    hidden = any(part.startswith('.') for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in suffixes and path.is_file()


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture: upright, 8 bits, without transparency, whatever it is stored as.

    Returns:
        np.ndarray: BGR (H, W, 3), uint8.

    Raises:
        SourceError: If the file is missing, empty, cut off or no picture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from error
    if not data:
        raise SourceError('is empty')
    if is_cut_off(data):
        raise SourceError('is cut off: its end is missing')
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f'cannot be read: {error.err or error}') from error
    if image is None:
        raise SourceError('is damaged, or no picture that OpenCV reads')
    return image


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
