"""Finds the weights in a checkpoint and checks their values."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from ..utils import UserError, enumerate_names

# Where a checkpoint keeps its weights. The plain copy comes before the moving average, as in the authors' own loader.
WEIGHT_KEYS = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
WEIGHT_DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
COPY = {False: 'plain copy', True: 'moving average (EMA)'}


def find_weights(checkpoint: dict, path: str) -> dict[str, Tensor]:
    """Picks the plain weights as :func:`pick_weights` does, or the moving average where there are no others."""
    return pick_weights(checkpoint, path, ema=False)[0]


def pick_weights(checkpoint: dict, path: str, ema: bool) -> tuple[dict[str, Tensor], bool]:
    """Picks the weights out of a checkpoint, drops a ``module.`` prefix, and tells whether they are a moving average.

    Args:
        checkpoint (dict): The content of a file.
        path (str): Its name, for the message.
        ema (bool): Take the moving average; otherwise the plain copy where there is one.

    Raises:
        UserError: If the file holds no weights, keys that are not names, or no moving average though one is wanted.
    """
    averages = {key for key in WEIGHT_KEYS if key.endswith('_ema')}
    if 'ema_state_dict' in checkpoint:  # MMEngine's EMAHook swaps the two copies when it saves
        averages.add('state_dict')
    keys = [key for key in WEIGHT_KEYS if key in averages or not ema]
    key = next((key for key in keys if isinstance(checkpoint.get(key), dict)), None)
    found = checkpoint[key] if key else {} if ema else checkpoint
    weights = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    nameless = [repr(name) for name in weights if not isinstance(name, str)]
    if nameless:
        raise UserError(f'{path} holds tensors with keys that are not names: {enumerate_names(nameless, 3)}')
    weights = {re.sub(r'^module\.', '', name): value for name, value in weights.items()}
    if not weights:
        kind = 'moving average of the weights' if ema else 'weights'
        raise UserError(f'{path} holds no {kind}; its entries are: {enumerate_names(checkpoint, 3)}')
    nested = [name for name, value in weights.items() if value.is_nested]
    if nested:  # they have no shape to compare
        raise UserError(f'{path} holds nested tensors, which cannot be weights: {enumerate_names(nested, 3)}')
    return weights, key in averages


def check_values(weights: dict[str, Tensor]) -> None:
    """Raises UserError, with names, unless all tensors are dense, finite and of floating-point numbers."""
    found: dict[str, list[str]] = {}
    for name, value in weights.items():
        problem = _find_problem(value)
        if problem:
            found.setdefault(problem, []).append(name)
    if found:
        listed = '; '.join(f'{len(names)} {problem}: {enumerate_names(names, 3)}' for problem, names in found.items())
        raise UserError(f'weights must be dense, finite, floating-point tensors, but there is {listed}')


def _find_problem(value: Tensor) -> str | None:
    if value.is_meta:
        return 'on the meta device'
    if value.layout != torch.strided:
        return f'in the layout {value.layout}'
    if value.is_quantized or value.dtype not in WEIGHT_DTYPES:
        return f'of the type {value.dtype}'
    if _overlaps(value):
        return 'with elements that share their storage'
    # in parts, as isfinite() takes several times the memory of its argument
    return None if all(part.isfinite().all() for part in value.reshape(-1).split(2**20)) else 'with NaN or Inf'


def _overlaps(value: Tensor) -> bool:
    """Whether two elements of a strided tensor may share memory; those of slices and transpositions do not."""
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(value.shape, value.stride()) if size > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def is_deploy_form(names: Iterable[str]) -> bool:
    """Whether names, released or not and with any prefix, are those of modulation blocks after ``switch_to_deploy()``.

    These blocks have no LayerScale.
    """
    names = list(names)
    modulates = any(name.endswith(('.context.f.weight', '.context_layer.f.weight')) for name in names)
    return modulates and not any(name.endswith(('.gamma', '.gamma_1')) for name in names)
