"""Draws predictions on images with OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ..data.canvas import Color, blend, spread_colors, text_scale, thickness, write_name
from ..export.results import Classification, Detections, Result, Segmentation

OPACITY = 0.5  # of masks and class maps
SMALLEST_LABELLED = 0.01  # share of an image that a class must cover to be named in it


def make_palette(palette: object, count: int) -> list[Color]:
    """Colours of ``count`` classes: those of a palette in RGB where it has enough, else spread over the hues."""
    if isinstance(palette, Sequence) and not isinstance(palette, str) and len(palette) >= count:
        return [tuple(int(part) for part in reversed(color)) for color in palette]
    return [color[::-1] for color in spread_colors(count)]


def draw(image: np.ndarray, result: Result, names: Sequence[str], palette: Sequence[Color]) -> np.ndarray:
    """A copy of an image, BGR (H, W, 3) uint8, with the predictions on it."""
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
            blend(region, mask.bits, palette[result.labels[i]], OPACITY)
    for i in order:
        color = palette[result.labels[i]]
        left, top, right, bottom = (round(float(value)) for value in result.boxes[i])
        cv2.rectangle(image, (left, top), (right, bottom), color, thickness(image))
        write_name(image, f'{names[result.labels[i]]} {result.scores[i]:.2f}', left, top, color)


def _draw_classes(image: np.ndarray, result: Segmentation, names: Sequence[str], palette: Sequence[Color]) -> None:
    colors = np.array(palette, np.uint8)[np.minimum(result.classes, len(palette) - 1)]
    image[:] = cv2.addWeighted(image, 1 - OPACITY, colors, OPACITY, 0)
    for label, count in zip(*np.unique(result.classes, return_counts=True)):
        if count >= SMALLEST_LABELLED * result.classes.size and label < len(names):
            inside = np.pad((result.classes == label).astype(np.uint8), 1)
            column, row = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3))[3]  # farthest from its edges
            write_name(image, names[label], column - 1, row - 1, palette[label], centred=True)


def _draw_ranking(image: np.ndarray, result: Classification, names: Sequence[str]) -> None:
    for line, label in enumerate(np.argsort(-result.scores, kind='stable')[:5]):
        text = f'{names[label]} {result.scores[label]:.3f}'
        height = round(36 * text_scale(image))
        write_name(image, text, 0, (line + 1) * height, (40, 40, 40))
