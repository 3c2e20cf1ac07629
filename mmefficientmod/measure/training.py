"""A training step of a backbone: its work, its gradients, and the memory that it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

RANDOM_RATES = ('drop_path_rate', 'drop_prob', 'p')  # attributes of stochastic depth and dropout


def prepare_for_training(model: nn.Module) -> nn.Module:
    """Training mode without random drops, so that the gradients of two modes can be compared."""
    for module in model.modules():
        for name in RANDOM_RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def training_step(model: nn.Module, images: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """The function to be timed: forward and backward pass, gradients of all parameters; returns the levels."""

    def run() -> tuple[Tensor, ...]:
        model.zero_grad(set_to_none=True)
        levels = model(images)
        sum(level.float().square().mean() for level in levels).backward()
        return levels

    return run


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients after a step, of all parameters that have one."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the parameters; every storage counts once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # a storage that is held keeps its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for storage in kept.values())
