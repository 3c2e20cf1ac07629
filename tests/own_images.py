"""Small data sets of made-up images, as people's own data is stored."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

NAMES = ['ball', 'box', 'plaything', 'flower', 'tent', 'fan']  # of the demo's objects


def write_masks(root: Path, count: int = 6, size=(64, 48), convert=lambda values: values, name='masks') -> Path:
    """Images with label images of three classes, a third of the width each, after ``convert``."""
    for folder in ('images', name):
        (root / folder).mkdir(parents=True)
    width, height = size
    values = np.repeat(np.arange(width) * 3 // width, height).reshape(width, height).T.astype(np.uint8)
    for i in range(count):
        image = np.random.default_rng(i).integers(0, 255, (height, width, 3), np.uint8)
        cv2.imwrite(str(root / f'images/scene{i}.jpg'), image)
        cv2.imwrite(str(root / f'{name}/scene{i}.png'), convert(values))
    return root


def write_folders(root: Path, counts: dict) -> Path:
    """A folder of images for each class."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = np.random.default_rng(100 * number + i).integers(0, 255, (40, 48, 3), np.uint8)
            cv2.imwrite(str(root / name / f'{number}_{i}.jpg'), image)
    return root
