"""What to predict on: finds pictures and videos, and reads them as 8-bit BGR."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import cv2
import numpy as np

from . import PredictError

PICTURES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpg', '.webm')
# In a JPEG's entropy-coded data, FF before anything but 00 and the restart markers begins the next segment.
_NEXT_SEGMENT = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_SCAN, _END = 0xDA, 0xD9


class SourceError(Exception):
    """A file that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Source:
    """A picture or a video."""

    path: Path
    name: str  # below the input folder, with /

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_sources(inputs: Sequence[str], out: Path) -> list[Source]:
    """The pictures and videos that are asked for, in order.

    Args:
        inputs (Sequence[str]): Files, folders (searched with their subfolders, without hidden files) and glob patterns.
        out (Path): The folder of the results, which is no input.

    Raises:
        PredictError: If an input does not exist or holds nothing, or is one of the results.
    """
    found: dict[Path, None] = {}
    roots = []
    for text in inputs:
        path = Path(text)
        if path.is_file():
            paths, root = [path], path.parent
        elif path.is_dir():
            paths, root = [other for other in path.rglob('*') if _is_wanted(other, path, out)], path
        else:
            paths = [other for other in map(Path, glob(text, recursive=True)) if _is_wanted(other, Path(), out)]
            if not paths and not set(text) & set('*?['):
                raise PredictError(f'{text} does not exist: give a picture, a video, a folder or a pattern')
            root = Path(os.path.commonpath([other.parent.absolute() for other in paths])) if paths else path
        if not paths:
            raise PredictError(f'{text} holds no picture or video: known are {", ".join((*PICTURES, *VIDEOS))}')
        roots.append(root.absolute())
        found.update(dict.fromkeys(other.absolute() for other in sorted(paths)))
    root = Path(os.path.commonpath(roots))
    if any(out.absolute() in path.parents for path in found):
        raise PredictError(f'an input lies in {out}, where the results go: choose another folder by --out')
    return [Source(path, path.relative_to(root).as_posix()) for path in found]


def _is_wanted(path: Path, root: Path, out: Path) -> bool:
    below = path.relative_to(root) if root in path.parents else Path(path.name)
    hidden = any(part.startswith('.') for part in below.parts)
    known = path.suffix.lower() in (*PICTURES, *VIDEOS)
    return known and not hidden and path.is_file() and out.absolute() not in path.absolute().parents


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


class Video:
    """The frames of a video, one after another.

    Args:
        path (Path): The file.

    Attributes:
        fps (float): Frames a second, 25 where the file does not say.
        frames (int): Their number as the file says, 0 where it does not.

    Raises:
        SourceError: If it cannot be opened or has no frames, and, while iterating, if it ends early.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file() or not path.stat().st_size:
            raise SourceError('is empty' if path.is_file() else 'does not exist')
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SourceError('is damaged, or no video that OpenCV reads')
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.frames = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            while True:
                read, frame = self._capture.read()
                if not read:
                    break
                count += 1
                yield frame
        finally:
            self._capture.release()
        if count < 0.9 * self.frames or not count:  # the number is an estimate in some formats
            raise SourceError(f'is damaged: {count} of {self.frames} frames could be read')
