"""Deformable and masked convolutions, CARAFE; ``mmcv/ops`` has a module of each name that calls these functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
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
        kW (int): Width of the kernel; it is known from ``weight``, as is ``kH``.
        kH (int): Height of the kernel.
        dW (int): Horizontal stride.
        dH (int): Vertical stride.
        padW (int): Horizontal padding.
        padH (int): Vertical padding.
        dilationW (int): Horizontal dilation.
        dilationH (int): Vertical dilation.
        group (int): Groups of channels with kernels of their own.
        deformable_group (int): Groups of channels with shifts of their own.
        im2col_step (int): Not used.
    """
    tensors = _tensors(input, weight, offset)
    settings = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
    output.copy_(torchvision_operators().deform_conv2d(*tensors, *settings))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Writes the gradients of maps and shifts; the arguments are those of :func:`deform_conv_forward`."""
    tensors = _tensors(input, weight, offset)
    settings = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
    grads = torchvision_operators()._deform_conv2d_backward(*widen(gradOutput), *tensors, *settings)
    gradInput.copy_(grads[0])
    gradOffset.copy_(_stop_at_edge(grads[2], offset, (kH, kW), settings))
    columns.set_(grads[1].to(columns.dtype))  # torchvision computes all at once


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds the weight's gradient times ``scale``; other arguments are those of :func:`deform_conv_forward`."""
    if columns.shape != gradWeight.shape:  # neither maps nor shifts have gradients
        tensors = _tensors(input, torch.zeros_like(gradWeight), offset)
        settings = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group, False)
        grads = torchvision_operators()._deform_conv2d_backward(*widen(gradOutput), *tensors, *settings)
        gradWeight.add_(grads[1], alpha=scale)
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
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
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
        kernel_h (int): Height of the kernel; it is known from ``weight``, as is ``kernel_w``.
        kernel_w (int): Width of the kernel.
        stride_h (int): Vertical stride.
        stride_w (int): Horizontal stride.
        pad_h (int): Vertical padding.
        pad_w (int): Horizontal padding.
        dilation_h (int): Vertical dilation.
        dilation_w (int): Horizontal dilation.
        group (int): Groups of channels with kernels of their own.
        deformable_group (int): Groups of channels with shifts of their own.
        with_bias (bool): Whether ``bias`` is added.
    """
    tensors = _tensors(input, weight, offset, mask, bias if with_bias else None)
    settings = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True)
    output.copy_(torchvision_operators().deform_conv2d(*tensors, *settings))


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
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Writes all gradients; the arguments are those of :func:`modulated_deform_conv_forward`."""
    tensors = _tensors(input, weight, offset, mask, bias if with_bias else None)
    settings = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True)
    grads = torchvision_operators()._deform_conv2d_backward(*widen(grad_output), *tensors, *settings)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    grad_offset.copy_(_stop_at_edge(grads[2], offset, (kernel_h, kernel_w), settings))
    grad_mask.copy_(grads[3])
    if with_bias:
        grad_bias.copy_(grads[4])


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


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Writes columns (C, M) to chosen positions of an image (1, C, height, width)."""
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
    padded = F.pad(torch.zeros_like(maps), [kernel_size // 2] * 4).unflatten(1, (group_size, -1))
    for tap, window, weight in _taps(maps, kernels, kernel_size, group_size, scale_factor):
        row, column = divmod(tap, kernel_size)
        padded[..., row : row + height, column : column + width] += (grad * weight).sum((4, 6))
        found = (grad * window).sum(2).flatten(4, 5).flatten(2, 3)
        mask_grad.unflatten(1, (group_size, -1))[:, :, tap] = found.to(mask_grad.dtype)
    edge = kernel_size // 2
    bottom_grad.copy_(padded[..., edge : edge + height, edge : edge + width].flatten(1, 2))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Does as :func:`carafe_naive_forward`, and keeps ``features`` in ``rfeatures`` for the backward function."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


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
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Does as :func:`carafe_naive_backward`; the arguments between ``masks`` and ``bottom_grad`` are not used."""
    settings = (kernel_size, group_size, scale_factor)
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, *settings)


def _tensors(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> list[Tensor]:
    """The tensors of torchvision's deformable convolution, which takes no None."""
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return widen(input, weight, offset, mask, bias)


def _stop_at_edge(grad_offset: Tensor, offset: Tensor, kernel: tuple[int, int], settings: Sequence[int]) -> Tensor:
    """Sets the gradients of shifts to 0 for taps exactly one pixel outside of the map.

    At that kink torchvision takes the slope inwards, and MMCV the one outwards. A layer with padding whose shifts start
    at 0 has such taps along the border.
    """
    strides, padding, dilation, groups = settings[:2], settings[2:4], settings[4:6], settings[7]
    taps = torch.cartesian_prod(*(torch.arange(side, device=offset.device) for side in kernel)).view(-1, 2)
    shifts = offset.view(len(offset), groups, len(taps), 2, *offset.shape[2:])
    at_edge = torch.zeros_like(shifts[:, :, :, 0], dtype=torch.bool)
    for axis in range(2):
        steps = torch.arange(offset.shape[2 + axis], device=offset.device) * strides[axis] - padding[axis]
        start = taps[:, axis, None] * dilation[axis] + steps  # (taps, H' or W')
        at_edge |= start.unsqueeze(2 - axis) + shifts[:, :, :, axis] == -1
    return grad_offset.masked_fill(at_edge.unsqueeze(3).expand_as(shifts).reshape_as(offset), 0)


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
