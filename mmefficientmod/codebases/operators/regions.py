"""Pooling of regions; ``mmcv/ops/roi_align.py``, ``roi_pool.py`` and ``deform_roi_pool.py`` call these functions.

Regions have the shape (K, 5): index of the image, then two corners in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .common import bilinear_corners, torchvision_operators, widen

__all__ = [
    'deform_roi_pool_backward',
    'deform_roi_pool_forward',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
]


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the mean (``pool_mode`` 1) or maximum (0) of bilinear samples in each bin to ``output``.

    Args:
        input (Tensor): Maps of shape (B, C, H, W).
        rois (Tensor): Regions of shape (K, 5).
        output (Tensor): Output of shape (K, C, aligned_height, aligned_width).
        argmax_y (Tensor): Output of that shape: where each maximum was sampled. Empty for the mean.
        argmax_x (Tensor): Likewise.
        aligned_height (int): Bins of a region, vertically.
        aligned_width (int): Bins of a region, horizontally.
        spatial_scale (float): Pixels of the map for one of the image.
        sampling_ratio (int): Samples along each side of a bin, 0 for one in each pixel.
        pool_mode (int): 0 or 1.
        aligned (bool): Whether pixels have their centres at half coordinates.

    Raises:
        RuntimeError: If the second corner of an aligned region is left of or above the first. Not checked on a GPU.
    """
    (maps,) = widen(input)
    regions = rois.to(maps.dtype)
    if aligned and not regions.is_cuda and (regions[:, 3:] < regions[:, 1:3]).any():
        raise RuntimeError('RoIAlign takes no region whose second corner is left of or above its first')
    if pool_mode == 1:
        sizes = (spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
        output.copy_(torchvision_operators().roi_align(maps, regions, *sizes))
        return
    corners = regions[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    sides = sides if aligned else sides.clamp(min=1)
    output.fill_(-10000)  # as MMCV does for a bin without a sample
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    for chosen, y, x in _sample_points(corners, sides, (aligned_height, aligned_width), sampling_ratio):
        values = _sample(maps, regions[chosen, 0], y, x).flatten(-2)
        best, where = values.max(-1)
        output[chosen] = best.to(output.dtype)
        for points, result in ((y, argmax_y), (x, argmax_x)):
            points = points.expand(*torch.broadcast_shapes(y.shape, x.shape)).flatten(-2)[:, None].expand_as(values)
            result[chosen] = points.gather(-1, where[..., None])[..., 0].to(result.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
    **bins: int,
) -> None:
    """Writes the gradient of the maps to ``grad_input``; the arguments are those of :func:`roi_align_forward`."""
    grad, y, x = widen(grad_output, argmax_y, argmax_x)
    regions = rois.to(grad.dtype)
    if pool_mode == 1:
        sizes = (spatial_scale, *grad.shape[2:], *grad_input.shape, sampling_ratio, aligned)
        grad_input.copy_(torchvision_operators()._roi_align_backward(grad, regions, *sizes))
        return
    for index, weight in bilinear_corners(y, x, *grad_input.shape[2:]):
        _scatter(grad_input, regions, index, grad * weight * (y != -1))


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Writes the maximum of the pixels in each bin to ``output``, 0 for a bin without a pixel.

    torchvision's operator of this name rounds the corners of a region, MMCV's the edges of each bin.

    Args:
        input (Tensor): Maps of shape (B, C, H, W).
        rois (Tensor): Regions of shape (K, 5).
        output (Tensor): Output of shape (K, C, pooled_height, pooled_width).
        argmax (Tensor): Output of that shape: indices into the flattened map, -1 for a bin without a pixel.
        pooled_height (int): Bins of a region, vertically.
        pooled_width (int): Bins of a region, horizontally.
        spatial_scale (float): Pixels of the map for one of the image.
    """
    maps, regions = widen(input, rois)
    output.zero_()
    argmax.fill_(-1)
    start, end = regions[:, 1:3] * spatial_scale, (regions[:, 3:] + 1) * spatial_scale
    rows = _bin_edges(start[:, 1:], end[:, 1:], pooled_height, maps.shape[2])
    columns = _bin_edges(start[:, :1], end[:, :1], pooled_width, maps.shape[3])
    images = regions[:, 0].long().tolist()
    for k in (end > start).all(1).nonzero()[:, 0].tolist():
        (y, in_y), (x, in_x) = _pixels(*rows[:, k]), _pixels(*columns[:, k])
        if not y.shape[1] * x.shape[1]:
            continue
        y, x = y[:, None, :, None], x[:, None]
        inside = in_y[:, None, :, None] & in_x[:, None]  # (pooled_height, pooled_width, pixels, pixels)
        values = maps[images[k]][:, y, x].masked_fill(~inside, -torch.inf).flatten(-2)
        best, where = values.max(-1)
        index = (y * maps.shape[3] + x).flatten(-2).expand_as(values).gather(-1, where[..., None])[..., 0]
        filled = inside.flatten(-2).any(-1)
        output[k] = best.where(filled, 0).to(output.dtype)
        argmax[k] = index.where(filled, -1).to(argmax.dtype)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **settings: Any) -> None:
    """Writes the gradient of the maps to ``grad_input``; the arguments are those of :func:`roi_pool_forward`."""
    grad, regions = widen(grad_output, rois)
    _scatter(grad_input, regions, argmax.clamp(min=0).long(), grad * (argmax >= 0))


def deform_roi_pool_forward(input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, **settings: Any) -> None:
    """Writes the mean of bilinear samples in each bin, which ``offset`` moves, to ``output``.

    Args:
        input (Tensor): Maps of shape (B, C, H, W).
        rois (Tensor): Regions of shape (K, 5).
        offset (Tensor): Horizontal, then vertical shift of each bin, of shape (K, 2, pooled_height, pooled_width), in
            sides of the region. Empty for none.
        output (Tensor): Output of shape (K, C, pooled_height, pooled_width).
        **settings: Those of :func:`_deform_roi_pool`.
    """
    output.copy_(_deform_roi_pool(*widen(input, rois, offset), **settings))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    **settings: Any,
) -> None:
    """Writes the gradients of maps and shifts; the arguments are those of :func:`deform_roi_pool_forward`."""
    grad, maps, regions, shifts = widen(grad_output, input, rois, offset)
    if not len(regions):
        return
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (maps, shifts)]
        pooled = _deform_roi_pool(inputs[0], regions, inputs[1], **settings)
        found = torch.autograd.grad(pooled, inputs, grad, allow_unused=True)
    for result, value in zip((grad_input, grad_offset), found):
        if value is not None:
            result.copy_(value)


def _deform_roi_pool(
    maps: Tensor,
    regions: Tensor,
    shifts: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Means (K, C, pooled_height, pooled_width); the first arguments are those of :func:`deform_roi_pool_forward`.

    Args:
        maps (Tensor): Its input.
        regions (Tensor): Its regions.
        shifts (Tensor): Its shifts.
        pooled_height (int): Bins of a region, vertically.
        pooled_width (int): Bins of a region, horizontally.
        spatial_scale (float): Pixels of the map for one of the image.
        sampling_ratio (int): Samples along each side of a bin, 0 for one in each pixel.
        gamma (float): What the shifts are multiplied with.
    """
    bins = pooled_height, pooled_width
    corners = regions[:, 1:] * spatial_scale - 0.5
    sides = corners[:, 2:] - corners[:, :2]
    pooled = (maps.sum() + shifts.sum()) * 0 + maps.new_zeros(len(regions), maps.shape[1], *bins)
    for chosen, y, x in _sample_points(corners, sides, bins, sampling_ratio):
        if shifts.numel():
            right, down = (gamma * sides[chosen, :, None, None] * shifts[chosen])[..., None, None].unbind(1)
            y, x = y + down, x + right
        pooled = pooled.index_copy(0, chosen, _sample(maps, regions[chosen, 0], y, x).mean((-2, -1)))
    return pooled


def _sample_points(
    corners: Tensor, sides: Tensor, bins: tuple[int, int], sampling_ratio: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Points at which regions are sampled, for all regions with as many points in each bin at once.

    Yields:
        tuple[Tensor, Tensor, Tensor]: Indices of k regions; vertical positions (k, bins, 1, points, 1); horizontal
            positions (k, 1, bins, 1, points).
    """
    steps = sides / sides.new_tensor(bins[::-1])  # (K, 2), horizontal first, as in the regions
    counts = (torch.full_like(steps, sampling_ratio) if sampling_ratio > 0 else steps.ceil()).int()
    for count in counts.unique(dim=0):
        chosen = (counts == count).all(1).nonzero()[:, 0]
        axes = []
        for axis, number in enumerate(count.tolist()):
            start, step = corners[chosen, axis, None, None], steps[chosen, axis, None, None]
            bin_numbers, points = (torch.arange(n, device=steps.device) for n in (bins[1 - axis], max(number, 0)))
            axes.append(start + bin_numbers[:, None] * step + (points + 0.5) * step / number)
        if min(count) > 0:
            yield chosen, axes[1][:, :, None, :, None], axes[0][:, None, :, None]


def _sample(maps: Tensor, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear samples of maps (B, C, H, W), of the shape (k, C, ...) for positions that broadcast to (k, ...)."""
    height, width = maps.shape[2:]
    pixels = maps.permute(0, 2, 3, 1).flatten(0, 2)
    start = images.long().view(-1, *[1] * (y.dim() - 1)) * height * width
    corners = bilinear_corners(y, x, height, width)
    return sum(pixels[start + index] * weight[..., None] for index, weight in corners).movedim(-1, 1)


def _scatter(grad_input: Tensor, regions: Tensor, index: Tensor, grad: Tensor) -> None:
    """Adds gradients (K, C, ...) to maps (B, C, H, W) at indices into the flattened map."""
    channels, height, width = grad_input.shape[1:]
    planes = regions[:, :1].long() * channels + torch.arange(channels, device=regions.device)
    index = planes[..., None, None] * height * width + index
    added = grad.new_zeros(grad_input.numel()).index_add_(0, index.flatten(), grad.flatten())
    grad_input += added.view_as(grad_input)


def _bin_edges(start: Tensor, end: Tensor, bins: int, size: int) -> Tensor:
    """First pixel and the one after the last of each bin, of shape (2, K, bins), for regions (K, 1) along an axis."""
    step = (end - start) / bins
    number = torch.arange(bins, device=start.device)
    edges = torch.stack(((number * step + start).floor(), ((number + 1) * step + start).ceil()))
    return edges.clamp(0, size).long()


def _pixels(first: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the pixels of bins, of shape (bins, pixels), and which of them are in the bin."""
    longest = int((after - first).max())
    pixels = first[:, None] + torch.arange(max(longest, 0), device=first.device)
    inside = pixels < after[:, None]
    return pixels.where(inside, first.new_zeros(())), inside
