"""Reads pictures as 8-bit BGR, and names what is wrong with those that cannot be read; needs NumPy and OpenCV alone."""

from __future__ import annotations

import re
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..utils import UserError
from .description import Description


@dataclass(frozen=True)
class Sample:
    """What is put in: ``image`` (B, 3, H, W) float32 and the height and width in it that are picture."""

    name: str
    image: np.ndarray
    picture: tuple[int, int]


class PictureSamples(typing.Sequence[Sample]):  # that of collections.abc needs Python 3.9
    """The user's pictures, resized and padded as the file wants them; read when asked for, as many are large.

    Args:
        paths (Sequence[str]): The pictures.
        description (Description): Of the file.
        fill (Sequence[float]): Values of the padding.
        option (str): The command line's option that named them, for messages.
    """

    def __init__(self, paths: Sequence[str], description: Description, fill: Sequence[float], option: str) -> None:
        self.paths, self.description, self.fill, self.option = paths, description, fill, option

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """Reads a picture.

        Raises:
            UserError: If it cannot be read.
        """
        import cv2

        path, description = self.paths[index], self.description
        try:
            picture = read_picture(Path(path))
        except UserError as error:
            raise UserError(f'{path} {error}: leave it out of {self.option}') from None
        height, width = description.fit(*picture.shape[:2])
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        image = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32)
        if description.resize.get('crop'):
            image = _centre(image, description)
            height, width = image.shape[2:]
        image = pad(image, *description.padded(height, width), self.fill)
        batch = description.size.get('batch') or 1
        return Sample(str(path), np.repeat(image, batch, 0), (height, width))


def _centre(image: np.ndarray, description: Description) -> np.ndarray:
    """Cuts the square that the test pipeline cuts, or the fixed size, out of the centre of (B, 3, H, W)."""
    side = description.resize['crop']
    size = (side, side) if description.size['dynamic'] else (description.size['height'], description.size['width'])
    top, left = (max(have - want, 0) // 2 for have, want in zip(image.shape[2:], size))
    return image[:, :, top : top + size[0], left : left + size[1]]


def pad(image: np.ndarray, height: int, width: int, fill: Sequence[float]) -> np.ndarray:
    """Pads (B, 3, h, w) at its right and bottom to (B, 3, height, width)."""
    padded = np.empty((*image.shape[:2], height, width), np.float32)
    padded[:] = np.reshape(fill, (1, 3, 1, 1))
    padded[:, :, : image.shape[2], : image.shape[3]] = image
    return padded


PICTURES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
# In a JPEG's entropy-coded data, FF before anything but 00 and the restart markers begins the next segment.
_NEXT_SEGMENT = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_SCAN, _END = 0xDA, 0xD9


def is_wanted(path: Path, folder: Path, suffixes: Collection[str] = PICTURES) -> bool:
    """Whether a path below a folder is a file with one of these suffixes, without a hidden part below the folder."""
    hidden = any(part.startswith('.') for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in suffixes and path.is_file()


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture: upright, 8 bits, without transparency, whatever it is stored as.

    Returns:
        np.ndarray: BGR (H, W, 3), uint8.

    Raises:
        UserError: If the file is missing, empty, cut off or no picture.
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
        raise UserError('is damaged, or no picture that OpenCV reads')
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
