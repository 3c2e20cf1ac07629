"""Adaptive pooling for inputs of any size under export, for which ONNX has no operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products: (B, C, H, W) -> (B, C, rows, columns).

    Args:
        size (tuple[int, int]): Rows and columns of the output.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (cell_weights(side, cells, x) for side, cells in zip(x.shape[-2:], self.size))
        return rows @ x @ columns.transpose(0, 1)


def cell_weights(side: int, cells: int, like: Tensor) -> Tensor:
    """The share of each of ``side`` places in each cell (cells, side): a cell i is from floor(i * side / cells) to
    ceil((i + 1) * side / cells)."""
    places = torch.arange(side, device=like.device)[None]
    index = torch.arange(cells, device=like.device)[:, None]
    low = torch.div(index * side, cells, rounding_mode='floor')
    high = torch.div((index + 1) * side + cells - 1, cells, rounding_mode='floor')
    inside = ((places >= low) & (places < high)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def replace_pools(head: nn.Module) -> None:
    """Puts :class:`AdaptivePool` in the place of torch's, except for pooling to one cell, which is a mean."""
    for module in head.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.AdaptiveAvgPool2d:
                size = child.output_size if isinstance(child.output_size, tuple) else (child.output_size,) * 2
                if size != (1, 1) and None not in size:
                    setattr(module, name, AdaptivePool(size))
