"""Linear layers over the channels of a feature map: on a CPU as 1x1 convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from torch.fx.experimental.symbolic_shapes import has_static_value
except ImportError:  # an older torch, which cannot tell while it compiles

    def has_static_value(size: int) -> bool:
        return False


# What oneDNN's convolution computes, where torch has it.
CONVOLVED = (torch.float32, torch.bfloat16) if torch.backends.mkldnn.is_available() else ()


def pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False, shortcut: Tensor | None = None
) -> Tensor:
    """``F.linear(x, weight, bias)``, and what often follows it.

    On a CPU it is a 1x1 convolution. oneDNN's kernels for it use the widest vectors that the processor has; those of
    MKL, behind ``F.linear``, do so on Intel's processors alone.

    Args:
        x (Tensor): Input (B, H, W, in).
        weight (Tensor): Weight (out, in).
        bias (Tensor, optional): Bias (out, ).
        gelu (bool): Apply GELU. Defaults to False.
        shortcut (Tensor, optional): Added at the end (B, H, W, out).

    Returns:
        Tensor: (B, H, W, out).
    """
    if _convolves(x):
        y = F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    else:
        y = F.linear(x, weight, bias).permute(0, 3, 1, 2)
    if gelu:  # on the convolution's own layout, where torch.compile makes it a part of the convolution
        y = F.gelu(y)
    if shortcut is not None:
        y = y + shortcut.permute(0, 3, 1, 2)
    return y.permute(0, 2, 3, 1)


def pointwise_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``pointwise(x, weight, bias)`` for the input, the weight and the bias."""
    return pointwise(grad, weight.t()), *pointwise_weight_backward(grad, x)


def pointwise_weight_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``pointwise(x, weight, bias)`` for the weight and the bias."""
    if not _convolves(x):
        grad = grad.flatten(0, -2)
        return grad.t() @ x.flatten(0, -2), grad.sum(0)
    channels = grad.shape[-1]
    weight = x.new_empty(channels, x.shape[-1], 1, 1)  # only its shape is used
    _, d_weight, d_bias = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight,
        [channels],
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [False, True, True],
    )
    return d_weight[:, :, 0, 0], d_bias


def _convolves(x: Tensor) -> bool:
    if x.device.type != 'cpu' or x.dtype not in CONVOLVED:
        return False
    # torch.compile (2.13) gets the memory format of a convolution wrong where sizes are symbols.
    return not torch.compiler.is_compiling() or all(has_static_value(size) for size in x.shape)


class Pointwise(nn.Linear):
    """``nn.Linear`` by :func:`pointwise`: (B, H, W, in) -> (B, H, W, out)."""

    def forward(self, x: Tensor, gelu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        return pointwise(x, self.weight, self.bias, gelu, shortcut)
