"""Parts of torch that the network needs, as they are in torch 2.1 and in later versions.

This file goes when torch 2.4 is the oldest supported version: its callers then import the same from torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.utils import digit_version
from torch import Tensor

# Before torch 2.4, `gelu_backward` on a CPU reads a gradient of other strides than the input's in the wrong order.
GELU_BACKWARD_NEEDS_EQUAL_STRIDES = digit_version(torch.__version__) < digit_version('2.4')

try:
    from torch.compiler import is_compiling as is_compiling
except ImportError:  # torch 2.1 and 2.2
    from torch._dynamo.external_utils import is_compiling as is_compiling

try:
    from torch.fx.experimental.symbolic_shapes import has_static_value
except ImportError:  # an older torch, which cannot tell while it compiles

    def has_static_value(size: int) -> bool:
        return False


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast casts to on a type of device now, None where it is off."""
    if hasattr(torch.amp, 'is_autocast_available'):  # from torch 2.4 on
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    elif device == 'cpu' and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    elif device == 'cuda' and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    return None


def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of ``F.gelu(x)`` for ``x``."""
    if GELU_BACKWARD_NEEDS_EQUAL_STRIDES and grad.stride() != x.stride():
        grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
    return torch.ops.aten.gelu_backward(grad, x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return gelu_backward(grad, *ctx.saved_tensors)


def gelu(x: Tensor) -> Tensor:
    """``F.gelu(x)`` with a right gradient on every torch."""
    return _Gelu.apply(x) if GELU_BACKWARD_NEEDS_EQUAL_STRIDES and torch.is_grad_enabled() else F.gelu(x)
