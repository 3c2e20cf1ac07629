"""Deformable and masked convolutions, CARAFE; ``mmcv/ops`` has a module of each name that calls these functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import torchvision_operators, widen

__all__ = [
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
]


# MMCV's names for stride, padding and dilation, vertical before horizontal, and for the numbers of groups of channels
# with kernels and with shifts of their own, in torchvision's order.
_DEFORM = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
_MODULATED = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group')


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **geometry: int
) -> None:
    """Writes a deformable convolution (Dai et al., ICCV 2017) to ``output``.

    Args:
        input (Tensor): Maps of shape (B, C, H, W).
        weight (Tensor): Kernels of shape (D, C / group, kH, kW).
        offset (Tensor): Vertical and horizontal shifts of every tap, of shape
            (B, deformable_group * 2 * kH * kW, H', W').
        output (Tensor): Output of shape (B, D, H', W').
        columns (Tensor): Scratch memory, which carries the weight's gradient between the two backward functions.
        ones (Tensor): Scratch memory, not used.
        **geometry (int): Integers by the names in ``_DEFORM``; others are not used.
    """
    output.copy_(torchvision_operators().deform_conv2d(*_arguments(geometry, input, weight, offset)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Writes the gradients of maps and shifts; the arguments are those of :func:`deform_conv_forward`."""
    grads = _backward(gradOutput, offset, _arguments(geometry, input, weight, offset))
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])
    columns.set_(grads[1].to(columns.dtype))  # torchvision computes all at once


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **geometry: int,
) -> None:
    """Adds the weight's gradient times ``scale``; other arguments are those of :func:`deform_conv_forward`."""
    if columns.shape != gradWeight.shape:  # neither maps nor shifts have gradients
        arguments = _arguments(geometry, input, torch.zeros_like(gradWeight), offset)
        gradWeight.add_(_backward(gradOutput, offset, arguments)[1], alpha=scale)
    else:
        gradWeight.add_(columns, alpha=scale)
        columns.set_(columns.new_empty(0))


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Writes a modulated deformable convolution (Zhu et al., CVPR 2019) to ``output``.

    Args:
        input (Tensor): Maps of shape (B, C, H, W).
        weight (Tensor): Kernels of shape (D, C / group, kernel_h, kernel_w).
        bias (Tensor): Shape (D,); not read unless ``with_bias``.
        ones (Tensor): Scratch memory, not used.
        offset (Tensor): Vertical and horizontal shifts of every tap, of shape
            (B, deformable_group * 2 * kernel_h * kernel_w, H', W').
        mask (Tensor): What every tap is multiplied with, of shape (B, deformable_group * kernel_h * kernel_w, H', W').
        output (Tensor): Output of shape (B, D, H', W').
        columns (Tensor): Scratch memory, not used.
        with_bias (bool): Whether ``bias`` is added.
        **geometry (int): Integers by the names in ``_MODULATED``; others are not used.
    """
    arguments = _arguments(geometry, input, weight, offset, mask, bias if with_bias else None)
    output.copy_(torchvision_operators().deform_conv2d(*arguments))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Writes all gradients; the arguments are those of :func:`modulated_deform_conv_forward`."""
    arguments = _arguments(geometry, input, weight, offset, mask, bias if with_bias else None)
    results = [grad_input, grad_weight, grad_offset, grad_mask, *([grad_bias] if with_bias else [])]
    for result, grad in zip(results, _backward(grad_output, offset, arguments)):
        result.copy_(grad)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Writes the windows of an image at chosen positions to the columns of ``col``.

    Args:
        im (Tensor): Shape (1, C, H, W).
        mask_h_idx (Tensor): Rows of the M positions.
        mask_w_idx (Tensor): Columns of the M positions.
        col (Tensor): Output of shape (C * kernel_h * kernel_w, M).
        kernel_h (int): Height of a window.
        kernel_w (int): Width of a window.
        pad_h (int): Rows of zeros above and below.
        pad_w (int): Columns of zeros left and right.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, **shape: int) -> None:
    """Writes columns (C, M) to chosen positions of an image (1, C, H, W); ``shape`` is not used."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Writes maps that are enlarged with a kernel for each pixel (CARAFE, Wang et al., ICCV 2019) to ``output``.

    Args:
        features (Tensor): Maps of shape (B, C, H, W).
        masks (Tensor): Kernels of shape (B, group_size * kernel_size**2, H * scale_factor, W * scale_factor).
        output (Tensor): Output of shape (B, C, H * scale_factor, W * scale_factor).
        kernel_size (int): Side of a kernel.
        group_size (int): Groups of channels with kernels of their own.
        scale_factor (int): How many times larger the output is.
    """
    maps, kernels = widen(features, masks)
    result = _split(maps.new_zeros(output.shape), group_size, scale_factor)
    for _, window, weight in _taps(maps, kernels, kernel_size, group_size, scale_factor):
        result.addcmul_(window, weight)
    output.copy_(result.view_as(output))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Writes the gradients of maps and kernels; other arguments are those of :func:`carafe_naive_forward`."""
    grad, maps, kernels = widen(top_grad, features, masks)
    grad = _split(grad, group_size, scale_factor)
    height, width = maps.shape[2:]
    edge = kernel_size // 2
    padded = F.pad(torch.zeros_like(maps), [edge] * 4).unflatten(1, (group_size, -1))
    for tap, window, weight in _taps(maps, kernels, kernel_size, group_size, scale_factor):
        row, column = divmod(tap, kernel_size)
        padded[..., row : row + height, column : column + width] += (grad * weight).sum((4, 6))
        found = (grad * window).sum(2).flatten(4, 5).flatten(2, 3)
        mask_grad.unflatten(1, (group_size, -1))[:, :, tap] = found.to(mask_grad.dtype)
    bottom_grad.copy_(padded[..., edge : edge + height, edge : edge + width].flatten(1, 2))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **settings: int,
) -> None:
    """Does as :func:`carafe_naive_forward`, and keeps ``features`` in ``rfeatures`` for the backward function."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, **settings)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    **settings: int,
) -> None:
    """Does as :func:`carafe_naive_backward`; the arguments between ``masks`` and ``bottom_grad`` are not used."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, **settings)


def _arguments(
    geometry: Mapping[str, int],
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> list[Any]:
    """The arguments of torchvision's deformable convolution, which takes no None."""
    settings = [geometry[name] for name in (_DEFORM if mask is None else _MODULATED)]
    no_mask, no_bias = input.new_zeros(len(input), 1), input.new_zeros(len(weight))
    tensors = widen(input, weight, offset, no_mask if mask is None else mask, no_bias if bias is None else bias)
    return [*tensors, *settings, mask is not None]


def _backward(grad_output: Tensor, offset: Tensor, arguments: Sequence[Any]) -> list[Tensor]:
    """Gradients of maps, weight, shifts, mask and bias.

    The gradients of shifts are 0 for taps exactly one pixel outside of the map. At that kink torchvision takes the
    slope inwards, and MMCV the one outwards. A layer with padding whose shifts start at 0 has such taps along the
    border.
    """
    grads = list(torchvision_operators()._deform_conv2d_backward(*widen(grad_output), *arguments))
    kernel, settings = arguments[1].shape[2:], arguments[5:]
    strides, padding, dilation, groups = settings[:2], settings[2:4], settings[4:6], settings[7]
    taps = torch.cartesian_prod(*(torch.arange(side, device=offset.device) for side in kernel)).view(-1, 2)
    shifts = offset.view(len(offset), groups, len(taps), 2, *offset.shape[2:])
    at_edge = torch.zeros_like(shifts[:, :, :, 0], dtype=torch.bool)
    for axis in range(2):
        steps = torch.arange(offset.shape[2 + axis], device=offset.device) * strides[axis] - padding[axis]
        start = taps[:, axis, None] * dilation[axis] + steps  # (taps, H' or W')
        at_edge |= start.unsqueeze(2 - axis) + shifts[:, :, :, axis] == -1
    grads[2] = grads[2].masked_fill(at_edge.unsqueeze(3).expand_as(shifts).reshape_as(offset), 0)
    return grads


def _split(enlarged: Tensor, groups: int, scale: int) -> Tensor:
    """Views enlarged maps as (B, groups, C / groups, H, scale, W, scale)."""
    height, width = enlarged.shape[2:]
    return enlarged.reshape(len(enlarged), groups, -1, height // scale, scale, width // scale, scale)


def _taps(
    maps: Tensor, kernels: Tensor, kernel_size: int, groups: int, scale: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The pixels that each tap of the kernels sees, and its weights, which broadcast to the shape of :func:`_split`."""
    height, width = maps.shape[2:]
    padded = F.pad(maps, [kernel_size // 2] * 4).unflatten(1, (groups, -1))
    weights = _split(kernels, groups, scale)
    for tap in range(kernel_size**2):
        row, column = divmod(tap, kernel_size)
        window = padded[..., row : row + height, column : column + width]
        yield tap, window[..., None, :, None], weights[:, :, tap, None]
