"""Draws predictions on pictures, by OpenCV."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from .results import Classification, Detections, Result, Segmentation

Color = tuple  # blue, green, red
FONT = cv2.FONT_HERSHEY_SIMPLEX
OPACITY = 0.5  # of masks and class maps
SMALLEST_LABELLED = 0.01  # share of a picture that a class must cover to be named in it


def make_palette(palette: object, count: int) -> list[Color]:
    """Colours of ``count`` classes: those of a palette in RGB where it has enough, else spread over the hues."""
    if isinstance(palette, Sequence) and not isinstance(palette, str) and len(palette) >= count:
        return [tuple(int(part) for part in reversed(color)) for color in palette]
    spread = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.9 - 0.3 * (i % 2), 0.95) for i in range(count)]
    return [tuple(round(255 * part) for part in reversed(color)) for color in spread]


def draw(image: np.ndarray, result: Result, names: Sequence[str], palette: Sequence[Color]) -> np.ndarray:
    """A copy of a picture, BGR (H, W, 3) uint8, with the predictions on it."""
    image = image.copy()
    if isinstance(result, Detections):
        _draw_detections(image, result, names, palette)
    elif isinstance(result, Segmentation):
        _draw_classes(image, result, names, palette)
    else:
        _draw_ranking(image, result, names)
    return image


def _draw_detections(image: np.ndarray, result: Detections, names: Sequence[str], palette: Sequence[Color]) -> None:
    order = np.argsort(result.scores, kind='stable')  # the surest last, on top
    for i in order:
        if result.masks is not None:
            mask = result.masks[i]
            rows, columns = mask.bits.shape
            region = image[mask.top : mask.top + rows, mask.left : mask.left + columns]
            color = np.array(palette[result.labels[i]])
            region[mask.bits] = ((1 - OPACITY) * region[mask.bits] + OPACITY * color).astype(np.uint8)
    for i in order:
        color = palette[result.labels[i]]
        left, top, right, bottom = (round(float(value)) for value in result.boxes[i])
        cv2.rectangle(image, (left, top), (right, bottom), color, _thickness(image))
        _write(image, f'{names[result.labels[i]]} {result.scores[i]:.2f}', left, top, color)


def _draw_classes(image: np.ndarray, result: Segmentation, names: Sequence[str], palette: Sequence[Color]) -> None:
    colors = np.array(palette, np.uint8)[np.minimum(result.classes, len(palette) - 1)]
    image[:] = cv2.addWeighted(image, 1 - OPACITY, colors, OPACITY, 0)
    for label, count in zip(*np.unique(result.classes, return_counts=True)):
        if count >= SMALLEST_LABELLED * result.classes.size and label < len(names):
            inside = np.pad((result.classes == label).astype(np.uint8), 1)
            column, row = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3))[3]  # farthest from its edges
            _write(image, names[label], column - 1, row - 1, palette[label], centred=True)


def _draw_ranking(image: np.ndarray, result: Classification, names: Sequence[str]) -> None:
    for line, label in enumerate(np.argsort(-result.scores, kind='stable')[:5]):
        text = f'{names[label]} {result.scores[label]:.3f}'
        height = round(36 * _scale(image))
        _write(image, text, 0, (line + 1) * height, (40, 40, 40))


def _scale(image: np.ndarray) -> float:
    return max(min(image.shape[:2]) / 900, 0.35)


def _thickness(image: np.ndarray) -> int:
    return max(round(2 * _scale(image)), 1)


def _write(image: np.ndarray, text: str, left: int, bottom: int, color: Color, centred: bool = False) -> None:
    """Writes text on a filled box, above ``bottom``, moved so far that it lies in the picture."""
    scale, thickness = _scale(image), _thickness(image)
    (width, height), base = cv2.getTextSize(text, FONT, scale, thickness)
    if centred:
        left, bottom = left - width // 2, bottom + (height + base) // 2
    left = max(min(left, image.shape[1] - width), 0)
    bottom = max(min(bottom, image.shape[0]), height + base)
    cv2.rectangle(image, (left, bottom - height - base), (left + width, bottom), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.114, 0.587, 0.299)) > 128 else (255, 255, 255)
    cv2.putText(image, text, (left, bottom - base), FONT, scale, ink, thickness, cv2.LINE_AA)
