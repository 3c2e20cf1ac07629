"""The modulation operator, gamma * fc2(v * context), whose backward pass keeps little and recomputes what is cheap."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .compat import autocast_dtype, gelu, gelu_backward
from .depthwise import depthwise, depthwise_backward, from_conv, to_conv
from .pointwise import pointwise, pointwise_backward, pointwise_weight_backward


def modulation(
    x: Tensor, norm: nn.LayerNorm, context: nn.Module, fc1: nn.Linear, fc2: nn.Linear, gamma: Tensor
) -> Tensor:
    """What a modulation block adds to its input.

    Args:
        x (Tensor): Input (B, H, W, C).
        norm (nn.LayerNorm): Its normalisation.
        context (ContextBranch): ``f``, ``dwconv`` and ``g`` of the context branch.
        fc1 (nn.Linear): C -> rC, the value.
        fc2 (nn.Linear): rC -> C.
        gamma (Tensor): LayerScale (C, ).

    Returns:
        Tensor: (B, H, W, C).
    """
    weights = (
        context.f.weight,
        context.f.bias,
        context.dwconv.weight,
        context.dwconv.bias,
        context.g.weight,
        context.g.bias,
        fc1.weight,
        fc1.bias,
        fc2.weight,
        fc2.bias,
    )
    dtype = autocast_dtype(x.device.type)
    if dtype:
        weights = tuple(weight.to(dtype) for weight in weights)
    # The operator casts where it must, and does the same in the backward pass, which knows no autocast.
    with torch.autocast(x.device.type, enabled=False) if dtype else nullcontext():
        return Modulation.apply(x, gamma, norm.weight, norm.bias, norm.eps, *weights)


def product(v: Tensor, context: Tensor) -> Tensor:
    """v (B, H, W, rC), activated where r > 1, times the context (B, H, W, C), broadcast."""
    r = v.shape[-1] // context.shape[-1]
    return (gelu(v).unflatten(-1, (r, -1)) * context.unsqueeze(-2)).flatten(-2) if r > 1 else v * context


class Modulation(torch.autograd.Function):
    """Keeps the input, the convolution's output, the context and the value; recomputes all else from them."""

    @staticmethod
    def forward(ctx, x, gamma, norm_w, norm_b, eps, f_w, f_b, dw_w, dw_b, g_w, g_b, fc1_w, fc1_b, fc2_w, fc2_b):
        u, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_w.to(x.dtype), norm_b.to(x.dtype), eps)
        u = u.to(f_w.dtype)
        conv = depthwise(pointwise(u, f_w, f_b), dw_w, dw_b)
        context = pointwise(from_conv(F.gelu(conv)), g_w, g_b)
        v = pointwise(u, fc1_w, fc1_b)
        y = gamma * pointwise(product(v, context), fc2_w, fc2_b)
        kept = mean, rstd, conv, context, v
        ctx.save_for_backward(x, gamma, norm_w, norm_b, f_w, f_b, dw_w, g_w, fc1_w, fc2_w, fc2_b, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gamma, norm_w, norm_b, f_w, f_b, dw_w, g_w, fc1_w, fc2_w, fc2_b, *kept = ctx.saved_tensors
        mean, rstd, conv, context, v = kept
        channels, ratio = x.shape[-1], v.shape[-1] // x.shape[-1]
        norm_w, norm_b = norm_w.to(x.dtype), norm_b.to(x.dtype)
        u = torch.addcmul(norm_b, (x - mean) * rstd, norm_w).to(f_w.dtype)

        value = F.gelu(v) if ratio > 1 else v
        modulated = (value.unflatten(-1, (ratio, -1)) * context.unsqueeze(-2)).flatten(-2)
        # The output of fc2 is not kept: what gamma's gradient needs of it follows from that of gamma * fc2.
        d_scaled_w, d_scaled_b = pointwise_weight_backward(grad.to(f_w.dtype), modulated)
        d_gamma = (d_scaled_w.to(gamma.dtype) * fc2_w).sum(1) + d_scaled_b * fc2_b
        d_fc2_w, d_fc2_b = (gamma[:, None] * d_scaled_w).to(fc2_w.dtype), (gamma * d_scaled_b).to(fc2_b.dtype)
        d_modulated = pointwise((gamma * grad).to(f_w.dtype), fc2_w.t())

        d_modulated = d_modulated.unflatten(-1, (ratio, -1))
        d_context = (d_modulated * value.unflatten(-1, (ratio, -1))).sum(-2)
        d_v = d_modulated.mul_(context.unsqueeze(-2)).flatten(-2)
        if ratio > 1:
            d_v = gelu_backward(d_v, v)
        d_u, d_fc1_w, d_fc1_b = pointwise_backward(d_v, u, fc1_w)

        d_activated, d_g_w, d_g_b = pointwise_backward(d_context, from_conv(F.gelu(conv)), g_w)
        d_conv = gelu_backward(to_conv(d_activated), conv)
        d_f, d_dw_w, d_dw_b = depthwise_backward(d_conv, pointwise(u, f_w, f_b), dw_w)
        d_u_context, d_f_w, d_f_b = pointwise_backward(d_f, u, f_w)

        d_x, d_norm_w, d_norm_b = torch.ops.aten.native_layer_norm_backward(
            (d_u + d_u_context).to(x.dtype), x, [channels], mean, rstd, norm_w, norm_b, [True, True, True]
        )
        return (
            d_x,
            d_gamma.to(gamma.dtype),
            d_norm_w,
            d_norm_b,
            None,
            d_f_w,
            d_f_b,
            d_dw_w,
            d_dw_b,
            d_g_w,
            d_g_b,
            d_fc1_w,
            d_fc1_b,
            d_fc2_w,
            d_fc2_b,
        )
