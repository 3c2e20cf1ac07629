"""What several operators share: torchvision's compiled ones, wider numbers, bilinear sampling."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ...utils import UserError, first_line


@functools.lru_cache(None)
def torchvision_operators() -> Any:
    """torchvision's compiled operators, ``torch.ops.torchvision``.

    Raises:
        UserError: If torchvision is missing or was built for another torch.
    """
    try:
        import torchvision

        torchvision.extension._assert_has_ops()
    except Exception as error:  # ImportError, RuntimeError, OSError or AttributeError, by what does not fit
        raise UserError(_explain(error)) from error
    return torch.ops.torchvision


def _explain(error: Exception) -> str:
    need = 'the operators of this package, used where MMCV has no compiled ones, need'
    try:
        installed = version('torchvision')
    except PackageNotFoundError:
        return f'{need} torchvision, which is not installed: install the release for torch {torch.__version__}'
    return (
        f'{need} a torchvision for torch {torch.__version__}, and torchvision {installed} does not fit '
        f'({first_line(error)}): install both from the same place'
    )


def widen(*tensors: Tensor) -> list[Tensor]:
    """Tensors of half precision in single precision, others as they are: few CPU kernels take half precision."""
    return [tensor.float() if tensor.dtype in (torch.half, torch.bfloat16) else tensor for tensor in tensors]


def bilinear_corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around each point of a map, and their weights.

    A point up to one pixel outside takes the value of the edge, one further out has weights of 0. Positions may carry
    gradients.

    Args:
        y (Tensor): Vertical positions in pixels.
        x (Tensor): Horizontal positions, of a shape that broadcasts with ``y``.
        height (int): Height of the map.
        width (int): Width of the map.

    Yields:
        tuple[Tensor, Tensor]: Indices into the flattened map, and weights.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    for row, row_weight in ((top, 1 - down), ((top + 1).clamp(max=height - 1), down)):
        for column, column_weight in ((left, 1 - right), ((left + 1).clamp(max=width - 1), right)):
            yield (row * width + column).long(), row_weight * column_weight * inside
