"""Deformable attention and PSA masks; ``mmcv/ops/multi_scale_deform_attn.py`` and ``psa_mask.py`` call these."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .common import widen

__all__ = ['ms_deform_attn_backward', 'ms_deform_attn_forward', 'psamask_backward', 'psamask_forward']


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Returns the output of multi-scale deformable attention (Zhu et al., ICLR 2021), of shape (B, Q, heads * C).

    MMCV's own function in torch, which it calls on a CPU, does the work.

    Args:
        value (Tensor): Flattened maps of all L levels, of shape (B, sum of H * W, heads, C).
        spatial_shapes (Tensor): Height and width of each level, of shape (L, 2).
        level_start_index (Tensor): Where each level starts; it is known from ``spatial_shapes``.
        sampling_loc (Tensor): Sampling positions from 0 to 1, horizontal first, of shape (B, Q, heads, L, points, 2).
        attn_weight (Tensor): Shape (B, Q, heads, L, points).
        im2col_step (int): Not used.
    """
    return _attend(widen(value, sampling_loc, attn_weight), spatial_shapes).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Writes all gradients; the arguments are those of :func:`ms_deform_attn_forward`."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in widen(value, sampling_loc, attn_weight)]
        grads = torch.autograd.grad(_attend(inputs, spatial_shapes), inputs, *widen(grad_output))
    for result, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        result.copy_(grad)


def _attend(inputs: list[Tensor], spatial_shapes: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    value, sampling_loc, attn_weight = inputs
    return multi_scale_deformable_attn_pytorch(value, spatial_shapes.tolist(), sampling_loc, attn_weight)


def psamask_forward(input: Tensor, output: Tensor, **settings: int) -> None:
    """Writes attention by relative position as attention by position (PSANet, Zhao et al., ECCV 2018) to ``output``.

    Args:
        input (Tensor): Shape (B, h_mask * w_mask, H, W).
        output (Tensor): Output of shape (B, H * W, H, W), filled with 0.
        **settings (int): Those of :func:`_pairs`.
    """
    for by_position, by_shift in _pairs(output, input, **settings):
        by_position.copy_(by_shift)


def psamask_backward(grad_output: Tensor, grad_input: Tensor, **settings: int) -> None:
    """Writes the gradient to ``grad_input``, filled with 0; the arguments are those of :func:`psamask_forward`."""
    for by_position, by_shift in _pairs(grad_output, grad_input, **settings):
        by_shift.copy_(by_position)


def _pairs(
    by_position: Tensor,
    by_shift: Tensor,
    *,
    psa_type: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
    **shape: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views (B, rows, columns) of the same numbers in both tensors, a pair for each shift that the map has room for.

    Args:
        by_position (Tensor): Shape (B, H * W, H, W).
        by_shift (Tensor): Shape (B, h_mask * w_mask, H, W).
        psa_type (int): 0 if each position collects from those around it, 1 if it distributes to them.
        h_mask (int): Height of the window around a position.
        w_mask (int): Width of the window around a position.
        half_h_mask (int): Rows of the window above the position.
        half_w_mask (int): Columns of the window left of the position.
        **shape (int): Number and size of the maps, not used.
    """
    height, width = by_shift.shape[2:]
    grid = by_position.reshape(-1, height, width, height, width)
    grid = grid.permute(0, 3, 4, 1, 2) if psa_type else grid  # the other position, then this one
    for number in range(h_mask * w_mask):
        up, left = half_h_mask - number // w_mask, half_w_mask - number % w_mask
        if abs(up) < height and abs(left) < width:
            rows, columns = height - abs(up), width - abs(left)
            top, start = max(up, 0), max(left, 0)
            there = grid.diagonal(up, 1, 3).diagonal(left, 1, 2)
            yield there, by_shift[:, number, top : top + rows, start : start + columns]
