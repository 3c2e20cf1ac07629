"""Linear layers over the channels of a feature map: on a CPU as 1x1 convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compat import gelu, has_static_value, is_compiling

# What oneDNN's convolution computes, where torch has it.
CONVOLVED = (torch.float32, torch.bfloat16) if torch.backends.mkldnn.is_available() else ()


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear(x, weight, bias)``, on a CPU as a 1x1 convolution, but not in an ONNX file.

    oneDNN's kernels for the convolution use the widest vectors that the processor has; those of MKL, behind
    ``F.linear``, only do so on Intel's processors. With one thread, torch (2.1 to 2.13) gives a 1x1 convolution of
    float32 to oneDNN only in a batch of 16 or more, or with a stride. So the pixels of smaller batches become one row
    then, and the stride is over the rows.

    Args:
        x (Tensor): Input (B, H, W, in).
        weight (Tensor): Weight (out, in).
        bias (Tensor, optional): Bias (out, ).

    Returns:
        Tensor: (B, H, W, out).
    """
    if not _convolves(x):
        return F.linear(x, weight, bias)
    kernel = weight[:, :, None, None]
    if _becomes_a_row(x):
        row = x.view(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
        return F.conv2d(row, kernel, bias, stride=(2, 1)).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, bias).permute(0, 2, 3, 1)


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
    if x.device.type != 'cpu' or x.dtype not in CONVOLVED or torch.onnx.is_in_onnx_export():
        return False
    # torch.compile (2.13) gets the memory format of a convolution wrong where sizes are symbols.
    return not is_compiling() or all(has_static_value(size) for size in x.shape)


def _becomes_a_row(x: Tensor) -> bool:
    if is_compiling() or torch.jit.is_tracing() or torch.get_num_threads() > 1:
        return False
    return x.is_contiguous() and 0 < len(x) < 16


class Pointwise(nn.Linear):
    """``nn.Linear`` by :func:`pointwise`: (B, H, W, in) -> (B, H, W, out)."""

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


def gelu_epilogue(y: Tensor) -> Tensor:
    """GELU of a linear layer's output (B, H, W, C), in the layout in which torch.compile fuses it into the layer."""
    if torch.onnx.is_in_onnx_export():  # other runtimes would transpose there and back
        return gelu(y)
    return gelu(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def shortcut_epilogue(y: Tensor, shortcut: Tensor) -> Tensor:
    """``y + shortcut``, each (B, H, W, C), in the layout in which torch.compile fuses it into the layer behind y."""
    if torch.onnx.is_in_onnx_export():
        return y + shortcut
    return (y.permute(0, 3, 1, 2) + shortcut.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
