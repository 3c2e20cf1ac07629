"""What to predict on: finds images, videos and streams, and reads videos frame by frame."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..export.images import find_files
from ..utils import IMAGE_SUFFIXES, UserError, is_utf8

VIDEOS = ('.3gp', '.avi', '.flv', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv')
KNOWN = IMAGE_SUFFIXES + VIDEOS
STREAM = re.compile(r'[0-9]{1,3}|[a-z][a-z0-9+.-]*://.+', re.IGNORECASE)  # a camera's number, or an address


@dataclass(frozen=True)
class Source:
    """An image, a video, or a stream of a camera or an address."""

    path: Path
    name: str  # below the input folder, with /
    stream: str | None = None  # number of a camera, or address

    def __str__(self) -> str:
        return re.sub('//[^/@]*@', '//', self.stream) if self.stream else str(self.path)  # without a password

    @property
    def is_video(self) -> bool:
        return self.stream is not None or self.path.suffix.lower() in VIDEOS


def find_sources(inputs: Sequence[str], out: Path) -> list[Source]:
    """The images and videos that are asked for, in order; what is left out of folders is named on the screen.

    Args:
        inputs (Sequence[str]): Files, folders (searched with their subfolders, without hidden files), glob patterns,
            numbers of cameras and addresses of streams. A file of that name comes before a camera.
        out (Path): The folder of the results, which is not an input.

    Raises:
        UserError: If an input does not exist or holds nothing, or lies where the results go.
    """
    found: dict[Path | Source, None] = {}
    roots, results = [], out.resolve()
    for text in inputs:
        path = Path(text)
        if STREAM.fullmatch(text) and not os.path.lexists(path):
            found[_stream(text)] = None
            continue
        files = find_files(text, KNOWN, results)
        apart = [] if _is_in(path, results) else [other for other in files.paths if not _is_in(other, results)]
        if files.paths and not apart:
            raise UserError(f'{text} lies in {out}, where the results go: choose another folder with --out')
        left_out = files.describe_left_out()
        if not apart:
            raise UserError(
                f'{text} holds no image or video{left_out and f" ({left_out})"}: known are {", ".join(KNOWN)}'
            )
        if left_out:
            print(f'{text}: {left_out}', file=sys.stderr)
        roots += [_plain(path)] if path.is_dir() else [_plain(other.parent) for other in apart]
        found.update(dict.fromkeys(map(_plain, apart)))
    root = Path(os.path.commonpath(roots)) if roots else Path()
    return [each if isinstance(each, Source) else Source(each, each.relative_to(root).as_posix()) for each in found]


def _stream(text: str) -> Source:
    """A camera or a stream, with results that are named by its number, or by its address without a password."""
    address = re.sub('^.*://([^/@]*@)?', '', text)
    name = f'camera-{text}' if text.isdecimal() else re.sub('[^A-Za-z0-9._-]+', '-', address).strip('-.') or 'stream'
    return Source(Path(name), name, text)


def _plain(path: Path) -> Path:
    """The absolute path without ``..``, by which results are named: a link keeps its own name."""
    return Path(os.path.abspath(path))


def _is_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, which is resolved, or lies in it, wherever links lead."""
    path = Path(os.path.realpath(path))  # unlike resolve(), of links in a circle, too
    return path == folder or folder in path.parents


class Video:
    """The frames of a video or a stream, one after another.

    Args:
        source (Source): The file, camera or address.

    Attributes:
        fps (float): Frames a second, 25 where the source does not say.
        frames (int): Their number as a file says, 0 where it does not.
        is_uneven (bool): Whether the frames read so far come at intervals that differ.

    Raises:
        UserError: If it cannot be opened or has no frames, and, while iterating, if a file ends early.
    """

    def __init__(self, source: Source) -> None:
        self.is_stream = source.stream is not None
        if source.stream is not None:
            self._capture = cv2.VideoCapture(int(source.stream) if source.stream.isdecimal() else source.stream)
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, where predicting is slower
        else:
            if not source.path.is_file() or not source.path.stat().st_size:
                raise UserError('is empty' if source.path.is_file() else 'does not exist')
            if not is_utf8(source.path):
                raise UserError('has a name that is not UTF-8, which OpenCV cannot open: rename it')
            self._capture = cv2.VideoCapture(str(source.path))
        if not self._capture.isOpened():
            raise UserError('cannot be opened' if self.is_stream else 'is damaged, or no video that OpenCV reads')
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.frames = 0 if self.is_stream else max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.is_uneven = False

    def __iter__(self) -> Iterator[np.ndarray]:
        count, time, steps = 0, 0.0, (float('inf'), 0.0)
        try:
            while True:
                read, frame = self._capture.read()
                if not read:
                    break
                before, time = time, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                count += 1
                if count > 2:  # some readers give the first frame the time of the second
                    steps = min(steps[0], time - before), max(steps[1], time - before)
                    self.is_uneven = steps[1] - steps[0] > max(0.5 * steps[0], 0.01)  # more than times are rounded
                yield frame
        finally:
            self._capture.release()
        if self.is_stream and not count:
            raise UserError('gives no frame')
        # Some formats tell only their duration, from which OpenCV computes a number of frames for one rate.
        if not count or max(count, time * self.fps) < 0.9 * self.frames:
            raise UserError(f'is damaged: {count} of {self.frames} frames could be read')
