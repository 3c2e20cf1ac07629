"""Trains with weights, gradients and optimizer state sharded among processes, with torch's FSDP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.device import get_device
from torch.distributed.fsdp import FullyShardedDataParallel

from ..registry import STRATEGIES

# On a CPU, torch frees the memory of what it "offloads" to the CPU while it is read: the process dies (torch 2.13).
FULL_ON_CPU = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', offload_to_cpu=False, rank0_only=False),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', offload_to_cpu=False, rank0_only=False),
)


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """MMEngine's strategy of that name, which resumes with torch 2.1 and newer, and trains on a CPU as well.

    MMEngine 0.10 passes torch the optimizer's state in an order of arguments that torch 2.1 changed, so that resuming
    ends in a TypeError.

    Args:
        model_wrapper (dict, optional): As MMEngine takes it. Defaults to ``MMFullyShardedDataParallel``.
        state_dict_cfg (str or dict): As MMEngine takes it. Defaults to ``'full'``: one complete file, which everything
            that reads checkpoints takes, ``--resume`` without a path included. MMEngine's own is ``'local'``, a folder
            with a file of each process.
        **kwargs: As MMEngine takes them.

    Example:
        >>> runner_type = 'FlexibleRunner'
        >>> strategy = dict(type='mmefficientmod.FSDPStrategy')
    """

    def __init__(
        self, *, model_wrapper: Mapping | None = None, state_dict_cfg: str | Mapping = 'full', **kwargs: Any
    ) -> None:
        model_wrapper = dict(model_wrapper or dict(type='MMFullyShardedDataParallel'))
        if get_device() == 'cpu':
            model_wrapper.setdefault('device_id', 'cpu')  # MMEngine's is the number of a GPU
            state_dict_cfg = FULL_ON_CPU if state_dict_cfg == 'full' else state_dict_cfg
        super().__init__(model_wrapper=model_wrapper, state_dict_cfg=state_dict_cfg, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the optimizer's state, whole or this process's part of it."""
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
            )
        )
