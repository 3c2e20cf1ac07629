"""Batch normalization over several processes (``MMSyncBN``); ``mmcv/ops/sync_bn.py`` calls these functions."""

from __future__ import annotations

from torch import Tensor

__all__ = [
    'sync_bn_backward_data',
    'sync_bn_backward_param',
    'sync_bn_forward_mean',
    'sync_bn_forward_output',
    'sync_bn_forward_var',
]


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Writes the mean of each channel of (B, C, N) to ``mean``."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Writes the mean squared distance of each channel of (B, C, N) from ``mean`` to ``var``."""
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float,
    group_size: int,
) -> None:
    """Writes the normalized input, updates the running statistics, and keeps what the backward functions need.

    Args:
        input (Tensor): Shape (B, C, N).
        mean (Tensor): Mean of each channel, of shape (C,), as are the tensors up to ``running_var``, and ``std``.
        var (Tensor): Biased variance.
        weight (Tensor): Scale.
        bias (Tensor): Shift.
        running_mean (Tensor): Running mean, updated.
        running_var (Tensor): Running variance, updated without bias.
        norm (Tensor): Output of shape (B, C, N): the input before scale and shift.
        std (Tensor): Output: the standard deviation.
        output (Tensor): Output of shape (B, C, N).
        eps (float): What is added to the variance.
        momentum (float): Weight of this batch in the running statistics.
        group_size (int): Processes with batches of this size.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = len(input) * input.shape[2] * group_size
    running_mean.mul_(1 - momentum).add_(momentum * mean)
    running_var.mul_(1 - momentum).add_(momentum * var * (count / (count - 1) if count > 1 else 1))


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Writes the gradients of scale and shift."""
    grad_weight.copy_((grad_output.float() * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Writes the gradient of the input."""
    count = len(norm) * norm.shape[2]
    through_statistics = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((grad_output.float() - through_statistics) * (weight / std)[:, None])
