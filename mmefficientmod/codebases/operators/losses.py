"""Focal losses (Lin et al., ICCV 2017); ``mmcv/ops/focal_loss.py`` calls these functions.

Logarithms are those of MMCV's kernels, which take probabilities below the smallest normal number as that number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import widen

__all__ = [
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the loss of every class to ``output``.

    Args:
        input (Tensor): Logits of shape (N, C).
        target (Tensor): Classes of shape (N,); any other number stands for the background.
        weight (Tensor): Weights of the classes, of shape (C,), or empty.
        output (Tensor): Output of shape (N, C).
        gamma (float): Exponent of the focusing factor.
        alpha (float): Weight of the target class; the others weigh 1 - alpha.
    """
    logits = widen(input)[0]
    p = logits.sigmoid()
    positive = -alpha * (1 - p) ** gamma * _log(p)
    negative = (alpha - 1) * p**gamma * _log(1 - p)
    output.copy_(positive.where(_is_target(target, logits), negative) * _class_weights(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the derivatives of the losses; the arguments are those of :func:`sigmoid_focal_loss_forward`."""
    logits = widen(input)[0]
    p = logits.sigmoid()
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p))
    negative = (alpha - 1) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p)
    grad_input.copy_(positive.where(_is_target(target, logits), negative) * _class_weights(weight, target)[:, None])


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the loss of every sample to ``output``.

    Args:
        input (Tensor): Probabilities of shape (N, C).
        target (Tensor): Classes of shape (N,); samples with a negative number are left out.
        weight (Tensor): Weights of the classes, of shape (C,), or empty.
        output (Tensor): Output of shape (N,).
        gamma (float): Exponent of the focusing factor.
        alpha (float): Weight of the loss.
    """
    p = _probability_of_target(input, target)
    loss = -alpha * (1 - p) ** gamma * _log(p) * _class_weights(weight, target)
    output.copy_(loss * (target >= 0))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the derivatives of the losses by the logits to ``grad_input``.

    The arguments are those of :func:`softmax_focal_loss_forward`, with ``buff`` of shape (N,) as scratch memory.
    """
    p = _probability_of_target(input, target)
    slope = alpha * ((1 - p) ** (gamma - 1) * gamma * p * _log(p) - (1 - p) ** gamma)
    buff.copy_((slope * _class_weights(weight, target)).where(target >= 0, 0))
    (probabilities,) = widen(input)
    grad_input.copy_(widen(buff)[0][:, None] * (_is_target(target, probabilities).float() - probabilities))


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()


def _is_target(target: Tensor, scores: Tensor) -> Tensor:
    return target[:, None] == torch.arange(scores.shape[1], device=scores.device)


def _class_weights(weight: Tensor, target: Tensor) -> Tensor:
    """The weights of the targets, of shape (N,): 1 for all without weights, and for other numbers."""
    (weights,) = widen(weight)
    if not weights.numel():
        return weights.new_ones(len(target))
    is_class = (target >= 0) & (target < len(weights))
    return F.pad(weights, (0, 1), value=1)[target.where(is_class, torch.full_like(target, len(weights)))]


def _probability_of_target(probabilities: Tensor, target: Tensor) -> Tensor:
    return widen(probabilities)[0].gather(1, target.clamp(min=0)[:, None])[:, 0]
