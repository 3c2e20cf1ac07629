"""Draws on images: colours that tell classes apart, masks, names on boxes, sheets. Needs only NumPy and OpenCV."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
Color = tuple  # blue, green, red on an image of OpenCV


def drawable(name: str, number: int) -> str:
    """The name of a class as OpenCV can draw it: before version 5 without accents, or a number for other letters."""
    if name.isascii() or int(cv2.__version__.split('.')[0]) >= 5:
        return name
    plain = ''.join(letter for letter in unicodedata.normalize('NFKD', name) if not unicodedata.combining(letter))
    return plain if plain.isascii() else f'class {number}'


def spread_colors(count: int) -> list[tuple[int, int, int]]:
    """As many colours (red, green, blue), spread over the hues; the first ones are the same for every count."""
    spread = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.9 - 0.3 * (i % 2), 0.95) for i in range(count)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in spread]


def blend(image: np.ndarray, bits: np.ndarray, color: Sequence[int], opacity: float) -> None:
    """Tints the pixels of an image (H, W, 3) uint8 where ``bits`` (H, W) bool are set."""
    image[bits] = ((1 - opacity) * image[bits] + opacity * np.array(color)).astype(np.uint8)


def text_scale(image: np.ndarray) -> float:
    """The size of text on an image, for OpenCV."""
    return max(min(image.shape[:2]) / 900, 0.35)


def thickness(image: np.ndarray) -> int:
    """The width of lines on an image in pixels."""
    return max(round(2 * text_scale(image)), 1)


def write_name(image: np.ndarray, text: str, left: int, bottom: int, color: Color, centred: bool = False) -> None:
    """Writes text on a filled box, above ``bottom``, moved so far that it lies in the image."""
    scale, width_of_lines = text_scale(image), thickness(image)
    (width, height), base = cv2.getTextSize(text, FONT, scale, width_of_lines)
    if centred:
        left, bottom = left - width // 2, bottom + (height + base) // 2
    left = max(min(left, image.shape[1] - width), 0)
    bottom = max(min(bottom, image.shape[0]), height + base)
    cv2.rectangle(image, (left, bottom - height - base), (left + width, bottom), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.114, 0.587, 0.299)) > 128 else (255, 255, 255)
    cv2.putText(image, text, (left, bottom - base), FONT, scale, ink, width_of_lines, cv2.LINE_AA)


def label_tile(tile: np.ndarray, name: str, width: int = 160, band: int = 18) -> np.ndarray:
    """An image (H, W, 3) scaled to a width in pixels, below a white band with its name."""
    height = max(1, round(width * tile.shape[0] / tile.shape[1]))
    labelled = np.full((band + height, width, 3), 255, np.uint8)
    cv2.putText(labelled, name, (0, band - 6), FONT, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    labelled[band:] = cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA)
    return labelled


def sheet(rows: Sequence[Sequence[np.ndarray]], gap: int) -> np.ndarray:
    """Tiles of one size (H, W, 3), row by row with ``gap`` pixels between them, on white."""
    height, width = rows[0][0].shape[0] + gap, rows[0][0].shape[1] + gap
    canvas = np.full((len(rows) * height + gap, max(map(len, rows)) * width + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            top, left = i * height + gap, j * width + gap
            canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
