"""Chooses the copy of a checkpoint's weights that a run loads."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...checkpoints.weights import COPY, find_weights, pick_weights
from ...registry import HOOKS
from ...utils import UserError


@HOOKS.register_module()
class WeightCopyHook(Hook):
    """Chooses between the plain copy and the moving average of the weights, and logs which of them was loaded.

    Trainers that average the weights write both copies into one file: timm's under ``state_dict`` and
    ``state_dict_ema``, MMEngine's, which swaps them, under ``ema_state_dict`` and ``state_dict``. MMEngine loads
    ``state_dict``, or fails without it. A resumed run is left to MMEngine, which needs both copies.

    Args:
        load (str, optional): ``'plain'``, ``'ema'``, or None: ``state_dict`` where there is one. Defaults to None.

    Raises:
        ValueError: If ``load`` is none of these.
    """

    def __init__(self, load: str | None = None) -> None:
        if load not in (None, 'plain', 'ema'):
            raise ValueError(f"load must be 'plain', 'ema' or None, got {load!r}")
        self.load = load

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Stores the chosen weights under ``state_dict``.

        Raises:
            UserError: If the file does not hold that copy.
        """
        if runner._resume:
            return
        path = str(runner._load_from)
        plain = checkpoint.pop('ema_state_dict', None)
        if plain and self.load == 'plain':
            weights, is_average = find_weights(plain, path), False
        else:
            if plain is not None:
                checkpoint['ema_state_dict'] = plain  # tells the two copies apart
            weights, is_average = pick_weights(checkpoint, path, self.load == 'ema')
            if is_average and self.load == 'plain':
                raise UserError(f'{path} holds no plain copy of the weights, only their moving average')
        checkpoint['state_dict'] = weights
        print_log(f'{path}: {len(weights)} tensors, {COPY[is_average]}', logger='current')
