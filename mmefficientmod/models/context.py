"""Maps of modulation blocks - context, value in parts, and the products of both - and tiles that show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from .deploy import DeployModulationBlock
from .efficientmod import EfficientMod
from .layers import ModulationBlock


@dataclass(frozen=True)
class BlockMaps:
    """The maps of one modulation block for one image, each averaged over the channels."""

    stage: int  # from 1 on, as in the paper
    block: int  # in its stage, from 1 on
    context: Tensor  # output of the context branch (H, W): the paper's Figure 4
    values: Tensor  # the value in its parts (ratio, H, W)
    products: Tensor  # each part times the context (ratio, H, W): with the two above, Figure 6


def find_backbone(model: nn.Module) -> EfficientMod:
    """The EfficientMod in a classifier, detector or segmentor.

    Raises:
        ValueError: If the model has none.
    """
    found = next((module for module in model.modules() if isinstance(module, EfficientMod)), None)
    if found is None:
        raise ValueError(f'{type(model).__name__} has no EfficientMod: only its blocks have context maps')
    return found


@torch.no_grad()
def context_maps(backbone: EfficientMod, images: Tensor) -> list[list[BlockMaps]]:
    """Runs the backbone and keeps the maps of its modulation blocks; attention blocks have none.

    Args:
        backbone (EfficientMod): In evaluation mode, in the training or the deploy form.
        images (Tensor): Normalised images (B, 3, H, W).

    Returns:
        list[list[BlockMaps]]: For each image, the blocks in the order in which they run.
    """
    with _recorded(backbone) as records:
        backbone(images)
    samples: list[list[BlockMaps]] = [[] for _ in images]
    for (stage, block), record in records.items():
        context, value = record['context'], record['value']  # (B, H, W, C), (B, H, W, ratio * C)
        parts = value.unflatten(-1, (-1, context.shape[-1]))  # (B, H, W, ratio, C)
        if parts.shape[-2] > 1:
            parts = F.gelu(parts)
        products = (parts * context.unsqueeze(-2)).mean(-1).permute(0, 3, 1, 2)
        maps = context.mean(-1), parts.mean(-1).permute(0, 3, 1, 2), products
        for sample, *one in zip(samples, *maps):
            sample.append(BlockMaps(stage, block, *one))
    return samples


@contextmanager
def _recorded(backbone: EfficientMod) -> Iterator[dict[tuple[int, int], dict[str, Tensor]]]:
    """(stage, block) -> outputs of the context branch and of the value's linear layer, while the backbone runs."""
    records: dict[tuple[int, int], dict[str, Tensor]] = {}
    handles = []
    for i, blocks in enumerate(backbone.stages, 1):
        for j, block in enumerate(blocks, 1):
            if isinstance(block, (ModulationBlock, DeployModulationBlock)):
                for name, part in (('context', block.context), ('value', block.fc1)):

                    def keep(module: nn.Module, args: tuple, output: Tensor, key: tuple = (i, j, name)) -> None:
                        records.setdefault(key[:2], {})[key[2]] = output.float()

                    handles.append(part.register_forward_hook(keep))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


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
