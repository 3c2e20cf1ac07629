"""Stops a training whose loss or weights become NaN or infinite."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.hooks import Hook

from ...checkpoints.newest import find_newest_finite
from ...registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends a training in one line when its loss becomes NaN or infinite, and before such weights are saved.

    The line names the iteration, every loss term, and the newest complete checkpoint without NaN.

    Example:
        >>> default_hooks = dict(finite_loss=dict(type='mmefficientmod.FiniteLossHook'))
    """

    priority = 'NORMAL'  # before the checkpoint hook

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        terms = {name: _number(value) for name, value in (outputs or {}).items() if _is_number(value)}
        losses = {name: value for name, value in terms.items() if 'loss' in name}
        if not all(map(math.isfinite, losses.values())):
            listed = ', '.join(f'{name} {value:g}' for name, value in losses.items())
            _stop(runner, f'the loss is not finite at iteration {runner.iter + 1}: {listed}')

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        weights = {name: x for name, x in (checkpoint.get('state_dict') or {}).items() if isinstance(x, torch.Tensor)}
        bad = [name for name, value in weights.items() if not all(map(_is_finite, _parts(value)))]
        if bad:
            _stop(
                runner,
                f'{len(bad)} of the weights hold NaN or Inf after iteration {runner.iter + 1}, {bad[0]} is the first; '
                'they are not saved',
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _number(value: float | torch.Tensor) -> float:
    return value.item() if isinstance(value, torch.Tensor) else float(value)


def _parts(value: torch.Tensor) -> list[torch.Tensor]:
    """A tensor, or this process's shards of one that FSDP has sharded, on which torch cannot compute."""
    if hasattr(value, 'local_shards'):
        return [shard.tensor for shard in value.local_shards()]
    return [value.to_local() if hasattr(value, 'to_local') else value]


def _is_finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _stop(runner: Any, what: str) -> None:
    good = find_newest_finite(runner.work_dir)
    left = f'the last good checkpoint is {good}' if good else 'no checkpoint was written yet'
    raise SystemExit(
        f'error: {what}; {left}. Lower optim_wrapper.optimizer.lr, lengthen the warm-up or set optim_wrapper.clip_grad'
    )
