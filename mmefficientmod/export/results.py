"""Predictions on one image: made of a network's outputs, and masks as COCO's run lengths; needs NumPy and OpenCV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Union

import cv2
import numpy as np

from .description import Slide
from .inputs import Prepared, Size


@dataclass(frozen=True)
class Mask:
    """An object's mask, cut out of the image."""

    left: int
    top: int
    bits: np.ndarray  # (h, w) bool


@dataclass(frozen=True)
class Detections:
    """The objects in an image."""

    boxes: np.ndarray  # (n, 4) float32: left, top, right, bottom in pixels of the image
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
        box (np.ndarray): Left, top, right, bottom in pixels of the image.
        height (int): Of the image.
        width (int): Of the image.
        threshold (float): What belongs to the object. Defaults to 0.5.
    """
    left, top, values = paste_chances(mask, box, height, width)
    return Mask(left, top, values >= threshold)


def paste_chances(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> tuple[int, int, np.ndarray]:
    """Left, top and the chance (h, w) of each pixel around a box to belong to its object; see :func:`paste_mask`."""
    left, top = (max(int(np.floor(value)) - 1, 0) for value in box[:2])
    right, bottom = (min(int(np.ceil(value)) + 1, bound) for value, bound in zip(box[2:], (width, height)))
    if right <= left or bottom <= top:
        return 0, 0, np.zeros((0, 0), np.float32)
    rows = _mask_weights(top, bottom, box[1], box[3], mask.shape[0])
    columns = _mask_weights(left, right, box[0], box[2], mask.shape[1])
    return left, top, rows @ mask @ columns.T


def image_chances(
    logits: np.ndarray, inner: Size, scale: tuple[float, float], size: Size
) -> tuple[int, int, np.ndarray]:
    """Left and top, which are 0, and the chance (h, w) of each pixel of an image to belong to an object.

    Args:
        logits (np.ndarray): Of the object, on the whole input of the network.
        inner (tuple[int, int]): Height and width of that input.
        scale (tuple[float, float]): What the image's width and height were multiplied with.
        size (tuple[int, int]): Height and width of the image.
    """
    # MMDetection's way: to the input, then to the image, with the factors the other way round.
    whole = _resize(_resize(logits, inner, False), (ceil(inner[0] / scale[0]), ceil(inner[1] / scale[1])), False)
    return 0, 0, 1 / (1 + np.exp(-whole[: size[0], : size[1]]))


def _mask_weights(start: int, end: int, low: float, high: float, count: int) -> np.ndarray:
    """How much each of ``count`` cells between low and high adds to the pixels from start to end: (pixels, count)."""
    places = (np.arange(start, end) + 0.5 - low) / max(high - low, 1e-6) * count - 0.5
    return np.maximum(1 - np.abs(places[:, None] - np.arange(count)), 0)


# Of outputs ----------------------------------------------------------------------------------------------------------


def detections(
    outputs: Mapping[str, np.ndarray], prepared: Prepared, size: Size, score_thr: float, mask_thr: float | None = None
) -> Detections:
    """The objects in an image of a height and width, of the outputs for its prepared form."""
    scores = outputs['scores']
    rows = np.flatnonzero((scores >= score_thr) & (scores > 0))  # rows that are not used have score 0
    boxes = outputs['boxes'][rows] / np.array(prepared.scale * 2, np.float32)
    masks = None
    threshold = 0.5 if mask_thr is None else mask_thr
    if 'masks' in outputs:
        masks = [paste_mask(mask, box, *size, threshold) for mask, box in zip(outputs['masks'][rows], boxes)]
    elif 'image_masks' in outputs:
        inner = prepared.image.shape[1], prepared.image.shape[2]
        masks = [
            cut_mask(image_chances(logits, inner, prepared.scale, size)[2] > threshold)
            for logits in outputs['image_masks'][rows]
        ]
    return Detections(boxes.astype(np.float32), scores[rows], outputs['labels'][rows], masks)


@dataclass(frozen=True)
class Window:
    """A part of the network's input, and the head's logits for it (classes, h, w)."""

    top: int
    left: int
    size: Size
    logits: np.ndarray


def merge_windows(windows: Sequence[Window], inner: Size, valid: Size, size: Size, align_corners: bool) -> np.ndarray:
    """The class of each pixel of an image, from the logits of windows, as MMSegmentation computes it.

    The logits are resized to their window, averaged where windows overlap, cut to the valid part and resized to
    the image. One class follows another: all of them at full size may not fit into memory.

    Args:
        windows (Sequence[Window]): One, of all of the input, unless the segmentor slides.
        inner (tuple[int, int]): Height and width of the network's input.
        valid (tuple[int, int]): Those of the part without padding.
        size (tuple[int, int]): Those of the image.
        align_corners (bool): Of the resizing.

    Returns:
        np.ndarray: (H, W), uint8, or uint16 for more than 256 classes.
    """
    count = len(windows[0].logits)
    best = np.full(size, -np.inf, np.float32)
    classes = np.zeros(size, np.uint8 if count <= 256 else np.uint16)
    seen = np.zeros(inner, np.float32)
    for window in windows:
        seen[_part(window)] += 1
    for label in range(count):
        logit = np.zeros(inner, np.float32)
        for window in windows:
            logit[_part(window)] += _resize(window.logits[label], window.size, align_corners)
        if len(windows) > 1:
            logit /= seen
        value = _resize(logit[: valid[0], : valid[1]], size, align_corners)
        better = value > best
        best[better] = value[better]
        classes[better] = label
    return classes


def _part(window: Window) -> tuple[slice, slice]:
    height, width = window.size
    return slice(window.top, window.top + height), slice(window.left, window.left + width)


def slide_windows(slide: Slide, size: Size) -> list[tuple[int, int, Size]]:
    """Top, left and size of the windows of MMSegmentation's ``slide`` mode in an input of a height and width."""
    starts = []
    for side, crop, stride in zip(size, slide.crop, slide.stride):
        count = max(side - crop + stride - 1, 0) // stride + 1
        starts.append([max(min(i * stride + crop, side) - crop, 0) for i in range(count)])
    window = min(slide.crop[0], size[0]), min(slide.crop[1], size[1])
    return [(top, left, window) for top in starts[0] for left in starts[1]]


def _resize(image: np.ndarray, size: Size, align_corners: bool) -> np.ndarray:
    """Resizes (h, w) bilinearly, without smoothing, as torch does."""
    if image.shape == tuple(size):
        return image
    if not align_corners:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    rows, columns = (_corner_weights(new, old) for new, old in zip(size, image.shape))
    return rows @ image @ columns.T


def _corner_weights(new: int, old: int) -> np.ndarray:
    """What each of ``old`` points adds to each of ``new`` ones, first on first and last on last: (new, old)."""
    places = np.linspace(0, old - 1, new)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(old)), 0).astype(np.float32)


# As text -------------------------------------------------------------------------------------------------------------


def encode(mask: Mask, height: int, width: int) -> dict:
    """COCO's compressed run lengths of a mask in an image of that size."""
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
