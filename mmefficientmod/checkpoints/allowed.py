"""What a checkpoint may hold besides tensors."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import serialization

# Before, `weights_only=True` runs code from tar and TorchScript archives (CVE-2025-32434).
TORCH_READS_SAFELY = digit_version(torch.__version__) >= digit_version('2.6')


def _history_statistics(owner: type, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: it finds a log history's statistics and nothing else."""
    if owner is not HistoryBuffer or name not in ('mean', 'max', 'min', 'current'):
        raise pickle.UnpicklingError(f'function builtins.getattr of {owner!r} and {name!r}')
    return getattr(owner, name)


def plain_data() -> dict[str, Any]:
    """Name in a file -> class or function, for what checkpoints hold besides tensors: all of it is plain data.

    These are a timm trainer's arguments, MMEngine's log history and NumPy's arrays and numbers. NumPy 1 and 2 name
    their internals differently, and a file may come from either.
    """
    array_parts = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in '?SU' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']}
    return {
        'builtins.getattr': _history_statistics,
        **{f'{kind.__module__}.{kind.__name__}': kind for kind in (argparse.Namespace, HistoryBuffer, *dtypes)},
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        **{f'numpy.{core}.multiarray.{part.__name__}': part for core in ('core', '_core') for part in array_parts},
    }


def allow_safe_globals() -> None:
    """Lets MMEngine resume from its own checkpoints, whether they were written with NumPy 1 or 2.

    From torch 2.6 on, MMEngine reads them with torch's safe loader. Its allow-list gets the classes that they hold
    besides tensors. Earlier versions look classes up by name, and NumPy before 1.26 lacks the name that NumPy 2 writes.
    """
    if TORCH_READS_SAFELY:
        serialization.add_safe_globals([(part, name) for name, part in plain_data().items()])
    elif digit_version(np.__version__) < digit_version('1.26'):
        sys.modules.setdefault('numpy._core.multiarray', np.core.multiarray)
