"""Layer-wise learning-rate decay for any model of any MM codebase whose backbone knows the depth of its parameters."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scales the learning rate of each layer of the backbone by ``layer_decay_rate ** (layers above it)``.

    MMPreTrain's constructor asks the whole model for the depth of a parameter, which detectors and segmentors do not
    know; those of MMDetection and MMSegmentation know two networks. This one asks every part of the model that has a
    method ``get_layer_depth(param_name, prefix)``, as the backbones of MMPreTrain and :class:`EfficientMod
    <mmefficientmod.models.EfficientMod>` do. What lies outside keeps its learning rate.

    Everything else, ``norm_decay_mult`` and ``custom_keys`` included, is as in MMEngine's default constructor.

    Args:
        optim_wrapper_cfg (dict): As MMEngine takes it.
        paramwise_cfg (dict): As MMEngine takes it, and ``layer_decay_rate`` (float), above 0 and at most 1.

    Raises:
        ValueError: If ``layer_decay_rate`` is missing or out of range, the optimizer has no learning rate, or no part
            of the model knows depths.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='mmefficientmod.LayerDecayOptimWrapperConstructor',
        ...     optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
        ...     paramwise_cfg=dict(layer_decay_rate=0.8))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg needs layer_decay_rate, above 0 and at most 1, got {rate!r}')
        if self.base_lr is None:
            raise ValueError('layer-wise decay scales the learning rate: add lr to the optimizer')
        self.decay_rate = rate

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any) -> None:
        """Adds one parameter group per parameter; the learning rates are scaled once all are there."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not prefix:
            self._scale_rates(params, module)

    def _scale_rates(self, params: list[dict], model: nn.Module) -> None:
        parts = {name: part for name, part in model.named_modules() if name and _knows_depths(part)}
        if not parts:
            raise ValueError(
                f'layer-wise decay needs a backbone with get_layer_depth(); no part of {type(model).__name__} has it'
            )
        names = {id(param): name for name, param in model.named_parameters()}
        rates: dict[tuple[str, int], float] = {}
        for group in params:
            (param,) = group['params']
            name = names[id(param)]
            part = max((part for part in parts if name.startswith(f'{part}.')), key=len, default=None)
            if part is None:
                continue
            depth, num_layers = parts[part].get_layer_depth(name, f'{part}.')
            group['lr'] = group.get('lr', self.base_lr) * self.decay_rate ** (num_layers - depth - 1)
            rates.setdefault((part, depth), group['lr'])
        listed = ', '.join(f'{rate:.3g}' for _, rate in sorted(rates.items()))
        print_log(f'learning rates of the layers of {", ".join(parts)}: {listed}', logger='current')


def _knows_depths(part: nn.Module) -> bool:
    """Whether a part is a backbone with that method; a wrapper that passes the call on knows other names."""
    method = getattr(type(part), 'get_layer_depth', None)
    return method is not None and 'prefix' in inspect.signature(method).parameters
