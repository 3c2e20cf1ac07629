"""What a model predicts on one picture, and masks: pasting them and COCO's run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np


@dataclass(frozen=True)
class Mask:
    """An object's mask, cut out of the picture."""

    left: int
    top: int
    bits: np.ndarray  # (h, w) bool


@dataclass(frozen=True)
class Detections:
    """The objects in a picture."""

    boxes: np.ndarray  # (n, 4) float32: left, top, right, bottom in pixels of the picture
    scores: np.ndarray  # (n,) float32
    labels: np.ndarray  # (n,) int
    masks: list[Mask] | None


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel."""

    classes: np.ndarray  # (H, W) uint8, uint16 where there are more than 256 classes


@dataclass(frozen=True)
class Classification:
    """The probability of every class."""

    scores: np.ndarray  # (classes,) float32


Result = Union[Detections, Segmentation, Classification]


def cut_mask(mask: np.ndarray) -> Mask:
    """A mask (H, W) bool without the empty margins."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Mask(0, 0, np.zeros((0, 0), bool))
    top, left = int(rows[0]), int(columns[0])
    return Mask(left, top, mask[top : rows[-1] + 1, left : columns[-1] + 1])


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5) -> Mask:
    """Puts the mask of a mask head into its box, as MMDetection does: bilinear, zero around the mask.

    Args:
        mask (np.ndarray): Probabilities (M, M).
        box (np.ndarray): Left, top, right, bottom in pixels of the picture.
        height (int): Of the picture.
        width (int): Of the picture.
        threshold (float): What belongs to the object. Defaults to 0.5.
    """
    left, top = (max(int(np.floor(value)) - 1, 0) for value in box[:2])
    right, bottom = (min(int(np.ceil(value)) + 1, bound) for value, bound in zip(box[2:], (width, height)))
    if right <= left or bottom <= top:
        return Mask(0, 0, np.zeros((0, 0), bool))
    rows = _weights(top, bottom, box[1], box[3], mask.shape[0])
    columns = _weights(left, right, box[0], box[2], mask.shape[1])
    return Mask(left, top, rows @ mask @ columns.T >= threshold)


def _weights(start: int, end: int, low: float, high: float, count: int) -> np.ndarray:
    """How much each of ``count`` cells between low and high adds to the pixels from start to end: (pixels, count)."""
    places = (np.arange(start, end) + 0.5 - low) / max(high - low, 1e-6) * count - 0.5
    return np.maximum(1 - np.abs(places[:, None] - np.arange(count)), 0)


def encode(mask: Mask, height: int, width: int) -> dict:
    """COCO's compressed run lengths of a mask in a picture of that size."""
    rows, columns = mask.bits.shape
    strip = np.zeros((columns + 1, height), bool)  # column by column; the last one ends a run at the bottom
    strip[:columns, mask.top : mask.top + rows] = mask.bits.T
    flat = strip.ravel().astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0)) + mask.left * height
    counts = np.diff(changes, prepend=0, append=height * width).tolist()
    if len(counts) > 1 and not counts[-1]:
        counts.pop()
    return dict(size=[height, width], counts=_compress(counts))


def _compress(counts: Sequence[int]) -> str:
    """Counts as text: the difference to the count of the same kind before, 5 bits a character, lowest first."""
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(chr(48 + (bits | 0x20 if more else bits)))
    return ''.join(text)
