"""Trains in several processes on a machine without a GPU, as MMEngine's launchers always choose a GPU.

Its use is to test distributed training, its checks and resuming without a GPU; it is not made for speed.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.functional import batch_norm

from ..registry import MODEL_WRAPPERS

# torch 2.1's FSDP gives a priority to the streams of a CPU, which take none there.
SHARDS_ON_CPU = 'priority' in inspect.signature(torch.cpu.Stream.__init__).parameters


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of all processes, on a CPU: torch's ``SyncBatchNorm`` needs a GPU.

    It exists so that tests can train such models without a GPU. It takes and returns (B, C, ...), with the equation,
    running statistics and gradients that ``BatchNorm`` has for the whole batch.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training or self.running_mean is None) or not dist.is_initialized():
            return batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training or self.running_mean is None,
                self.momentum or 0.0,
                self.eps,
            )
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = input.new_tensor([input.numel() / input.shape[1]])
        total = all_reduce(torch.cat([input.sum(axes), count]))
        count, mean = total[-1].detach(), total[:-1] / total[-1].detach()
        centred = input - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        if self.training and self.track_running_stats:
            self._update(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        return normalised * self.weight.view(shape) + self.bias.view(shape) if self.affine else normalised

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


@MODEL_WRAPPERS.register_module()
class CpuDistributedDataParallel(MMDistributedDataParallel):
    """MMEngine's model wrapper for several processes on a CPU, synchronised batch norm included.

    Args:
        module (nn.Module): The model.
        device_ids (object): Accepted for MMEngine's sake, which names a GPU.
        **kwargs: As ``MMDistributedDataParallel`` takes them.
    """

    def __init__(self, module: nn.Module, device_ids: object = None, **kwargs: Any) -> None:
        for part in module.modules():
            if isinstance(part, nn.SyncBatchNorm):
                part.__class__ = CpuSyncBatchNorm
        super().__init__(module=module, device_ids=None, **kwargs)


def start_on_cpu(config: Config) -> str | None:
    """Prepares a config for several processes of torch's launcher or Slurm on a machine without a GPU; connects them.

    Args:
        config (Config): As the codebase's script passes it to the runner; changed in place.

    Returns:
        str: An error message, None if all is well or nothing is to be prepared.
    """
    if config.get('launcher') not in ('pytorch', 'slurm') or get_device() != 'cpu':
        return None
    settings = dict((config.get('env_cfg') or {}).get('dist_cfg') or {})
    backend = settings.get('backend', 'nccl')
    if backend == 'nccl':
        return 'this machine has no GPU: add --cfg-options env_cfg.dist_cfg.backend=gloo to train on its CPU'
    strategy = str((config.get('strategy') or {}).get('type'))
    if strategy.endswith('FSDPStrategy') and not SHARDS_ON_CPU:
        return f'torch {torch.__version__} cannot shard weights among processes on a CPU: update it, or use DDP'
    if not dist.is_initialized():  # MMEngine does it otherwise, after it has chosen a GPU
        if config.launcher == 'slurm':
            missing = _name_processes(settings.get('port'))
            if missing:
                return f'--launcher slurm is for processes that srun starts (see tools/slurm_train.sh): {missing}'
        timeout = settings.get('timeout')
        dist.init_process_group(backend, **({'timeout': timedelta(seconds=timeout)} if timeout else {}))
    if not config.get('model_wrapper_cfg'):
        config.model_wrapper_cfg = dict(
            type='mmefficientmod.CpuDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=config.get('find_unused_parameters', False),
        )
    return None


def _name_processes(port: int | None) -> str | None:
    """Sets the variables that torch reads from those that Slurm sets, as MMEngine does on a machine with a GPU.

    Returns:
        str: The missing part of Slurm, None if nothing is missing.
    """
    names = {'RANK': 'SLURM_PROCID', 'LOCAL_RANK': 'SLURM_LOCALID', 'WORLD_SIZE': 'SLURM_NTASKS'}
    missing = [name for name in (*names.values(), 'SLURM_NODELIST') if not os.environ.get(name)]
    if missing:
        return f'{", ".join(missing)} not set'
    if 'MASTER_ADDR' not in os.environ:
        if not shutil.which('scontrol'):
            return 'scontrol not found'
        hosts = subprocess.check_output(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], text=True)
        os.environ['MASTER_ADDR'] = hosts.split()[0]
    os.environ['MASTER_PORT'] = str(port or os.environ.get('MASTER_PORT', 29500))
    os.environ.update((name, os.environ[other]) for name, other in names.items())
    return None
