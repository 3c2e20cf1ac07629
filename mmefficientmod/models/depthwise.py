"""The depth-wise convolution of the context branch, in the memory layout that suits the device and the dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_layout(device: str, dtype: torch.dtype) -> torch.memory_format:
    """The memory layout in which a depth-wise convolution runs.

    On CUDA, torch gives each channels-last depth-wise convolution to cuDNN, whose kernels for float32 and float64 are
    slow (pytorch/pytorch#15513, #18631, #34977). In NCHW, torch runs kernels of its own, as the reference does. The
    rule has not been measured on a GPU yet; ``make gpu`` times both layouts.

    Args:
        device (str): Type of the device, such as ``'cuda'``.
        dtype (torch.dtype): Of the activations.

    Returns:
        torch.memory_format: ``torch.contiguous_format`` (NCHW, a copy) or ``torch.channels_last`` (a view).
    """
    if device == 'cuda' and dtype not in (torch.float16, torch.bfloat16):
        return torch.contiguous_format
    return torch.channels_last


def to_conv(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) in the layout of the convolution."""
    return _in_layout(x.permute(0, 3, 1, 2), x)


def from_conv(x: Tensor) -> Tensor:
    """(B, C, H, W) in the layout of the convolution -> (B, H, W, C)."""
    return _in_layout(x.permute(0, 2, 3, 1), x)


def _in_layout(view: Tensor, x: Tensor) -> Tensor:
    return view.contiguous() if conv_layout(x.device.type, x.dtype) == torch.contiguous_format else view


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves each channel with its own kernel, zeros around the map.

    Args:
        x (Tensor): Input (B, H, W, C).
        weight (Tensor): Kernels (C, 1, k, k), k odd.
        bias (Tensor): Bias (C, ).

    Returns:
        Tensor: (B, C, H, W), in the layout of :func:`to_conv`.
    """
    return F.conv2d(to_conv(x), weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[-1])


def depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`depthwise` for the input (B, H, W, C), the weight and the bias.

    Args:
        grad (Tensor): Gradient of the output (B, C, H, W), in the layout of the output.
        x (Tensor): Input (B, H, W, C).
        weight (Tensor): Kernels (C, 1, k, k).
    """
    channels = x.shape[-1]
    d_x, d_weight, d_bias = torch.ops.aten.convolution_backward(
        grad,
        to_conv(x),
        weight,
        [channels],
        [1, 1],
        [weight.shape[-1] // 2] * 2,
        [1, 1],
        False,
        [0, 0],
        channels,
        [True, True, True],
    )
    # the strides of the weight, as distributed training wants them
    return from_conv(d_x), d_weight.view_as(weight), d_bias
