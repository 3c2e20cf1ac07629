"""Draws context maps over their image, as single images and as contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch.nn.functional as F
from mmengine.visualization import Visualizer
from torch import Tensor

from .context import BlockMaps

WIDTH = 160  # pixels of a tile
GAP = 4  # pixels between tiles
LABEL = 18  # pixels for the text above a tile
WHITE = 255


def overlay(image: np.ndarray, heat: Tensor, padded: tuple[int, int], alpha: float = 0.6) -> np.ndarray:
    """A map (h, w) in colours over the image that the network saw, from the map's lowest value to its highest.

    Args:
        image (np.ndarray): RGB image (H, W, 3), uint8.
        heat (Tensor): The map.
        padded (tuple[int, int]): Height and width in pixels that the map stands for: the image and its padding.
        alpha (float): Weight of the colours. Defaults to 0.6.
    """
    heat = F.interpolate(heat[None, None].float(), padded, mode='bilinear')[0, :, : image.shape[0], : image.shape[1]]
    return Visualizer.draw_featmap(heat.cpu(), image, alpha=alpha)


def sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Tiles, each a name and an RGB image of the same size as the others, row by row, as one RGB image."""
    first = rows[0][0][1]
    height = max(1, round(WIDTH * first.shape[0] / first.shape[1]))
    columns = max(map(len, rows))
    cell_height, cell_width = LABEL + height + GAP, WIDTH + GAP
    canvas = np.full((len(rows) * cell_height + GAP, columns * cell_width + GAP, 3), WHITE, np.uint8)
    for i, row in enumerate(rows):
        for j, (name, tile) in enumerate(row):
            top, left = i * cell_height + GAP, j * cell_width + GAP
            cv2.putText(canvas, name, (left, top + LABEL - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
            tile = cv2.resize(tile, (WIDTH, height), interpolation=cv2.INTER_AREA)
            canvas[top + LABEL : top + LABEL + height, left : left + WIDTH] = tile
    return canvas


def context_rows(image: np.ndarray, maps: Sequence[BlockMaps], padded: tuple[int, int]) -> list[list]:
    """Tiles of the context: a row a stage, a tile a block; the image itself comes first."""
    rows: list[list] = []
    for stage in sorted({one.stage for one in maps}):
        row = [(f'stage {stage}', image)]
        row += [(f'block {one.block}', overlay(image, one.context, padded)) for one in maps if one.stage == stage]
        rows.append(row)
    return rows


def product_rows(image: np.ndarray, maps: Sequence[BlockMaps], padded: tuple[int, int]) -> list[list]:
    """Tiles of each stage's last block with a wide value: context and parts of the value, then the products."""
    rows: list[list] = []
    for stage in sorted({one.stage for one in maps}):
        wide = [one for one in maps if one.stage == stage and len(one.values) > 1]
        if wide:
            one = wide[-1]
            context = f'context {stage}.{one.block}', overlay(image, one.context, padded)
            parts = [(f'value {k}', overlay(image, part, padded)) for k, part in enumerate(one.values, 1)]
            products = [(f'product {k}', overlay(image, part, padded)) for k, part in enumerate(one.products, 1)]
            rows += [[context, *parts], [(f'stage {stage}', image), *products]]
    return rows
