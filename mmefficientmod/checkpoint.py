"""Checkpoints: reading them safely, the names of the released ones, conversion between both forms.

Two forms exist. *Released* files come from the authors' timm 0.6 trainer (ImageNet) or from MMCV 1.x (COCO, ADE20K);
*project* files come from MMEngine and name the parameters as :class:`mmefficientmod.models.EfficientMod` does. The
backbone takes either.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
import torch
from mmengine.fileio import get_local_path, isfile
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import Tensor, nn

# Where a checkpoint keeps its weights. The plain copy comes before the moving average, as in the authors' own loader.
WEIGHT_KEYS = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
BACKBONE_PREFIX = 'backbone.'
# Released name -> project name, applied in this order.
_TO_PROJECT: tuple[tuple[str, str | Callable], ...] = (
    (r'^patch_embed\.', 'patch_embeds.0.'),
    (r'^layers\.(\d+)\.downsample\.', lambda m: f'patch_embeds.{int(m[1]) + 1}.'),
    (r'^layers\.(\d+)\.blocks\.(\d+)\.', r'stages.\1.\2.'),
    (r'\.mlp\.context_layer\.context_list\.0\.', '.context.dwconv.'),
    (r'\.mlp\.context_layer\.', '.context.'),
    (r'\.mlp\.(fc[12])\.', r'.\1.'),
    (r'\.gamma_1$', '.gamma'),
)
_TO_RELEASED: tuple[tuple[str, str | Callable], ...] = (
    (r'^patch_embeds\.0\.', 'patch_embed.'),
    (r'^patch_embeds\.(\d+)\.', lambda m: f'layers.{int(m[1]) - 1}.downsample.'),
    (r'^stages\.(\d+)\.(\d+)\.', r'layers.\1.blocks.\2.'),
    (r'\.context\.dwconv\.', '.mlp.context_layer.context_list.0.'),
    (r'\.context\.', '.mlp.context_layer.'),
    (r'(blocks\.\d+)\.(fc[12])\.', r'\1.mlp.\2.'),
    (r'\.gamma$', '.gamma_1'),
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit; the message is one line that says why."""


def allow_safe_globals() -> None:
    """Adds what checkpoints hold beside tensors to the allow-list of torch's safe loader.

    These are classes of plain data: a timm trainer's arguments, MMEngine's log history and NumPy's arrays. From torch
    2.6 on MMEngine loads its own checkpoints by the safe loader, and without them it could not resume.
    """
    array_parts = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'bool')]
    torch.serialization.add_safe_globals(
        [argparse.Namespace, HistoryBuffer, np.ndarray, np.dtype, *array_parts, *dtypes]
    )
    if digit_version(torch.__version__) >= digit_version('2.6'):
        torch.serialization.add_safe_globals([(_history_statistics, 'builtins.getattr')])


def _history_statistics(owner: type, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: it finds a log history's statistics and nothing else."""
    if owner is not HistoryBuffer or name not in ('mean', 'max', 'min', 'current'):
        raise pickle.UnpicklingError(f'function builtins.getattr of {owner!r} and {name!r}')
    return getattr(owner, name)


def read_checkpoint(path: str, mmap: bool = False) -> dict:
    """Reads a checkpoint to the CPU without running code from it.

    Args:
        path (str): A local file or any address that MMEngine's file clients take.
        mmap (bool): Map the weights instead of reading them, where the file's format allows it. Defaults to False.

    Returns:
        dict: The content of the file.

    Raises:
        FileNotFoundError: If ``path`` is a local file that does not exist.
        CheckpointError: If the file is no complete PyTorch checkpoint, or asks for more than the allow-list holds.
    """
    allow_safe_globals()  # again: torch's own context manager, where another library uses it, takes them off the list
    path = str(path)
    if '://' not in path and not isfile(path):
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    with get_local_path(path) as local_path:
        try:
            mmap = mmap and zipfile.is_zipfile(local_path)
            checkpoint = torch.load(local_path, map_location='cpu', weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            asked = re.search(r'(?:GLOBAL|class|function) ([\w.]+\.\w+)', str(error))
            if asked is None:
                raise CheckpointError(f'{path} is truncated or no PyTorch checkpoint') from error
            raise CheckpointError(
                f'{path} is refused: to be read it asks for {asked[1]}, which could run code; take one of bare weights'
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f'{path} is truncated or no PyTorch checkpoint') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds no weights: it is a {type(checkpoint).__name__}, not a dict of them')
    return checkpoint


def find_weights(checkpoint: dict, path: str, ema: bool = False) -> dict[str, Tensor]:
    """Picks the weights out of a checkpoint and drops a ``module.`` prefix.

    Args:
        checkpoint (dict): The content of a file.
        path (str): Its name, for the message.
        ema (bool): Take the moving average where there is one. Defaults to False.

    Raises:
        CheckpointError: If the file holds no weights, or no moving average though one was asked for.
    """
    keys = [key for key in WEIGHT_KEYS if key.endswith('_ema')] if ema else WEIGHT_KEYS
    found = next((checkpoint[key] for key in keys if isinstance(checkpoint.get(key), dict)), {} if ema else checkpoint)
    weights = {name.removeprefix('module.'): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        kind = 'moving average of the weights' if ema else 'weights'
        raise CheckpointError(f'{path} holds no {kind}; its entries are: {_enumerate(map(str, checkpoint))}')
    return weights


def to_project_name(name: str) -> str:
    """The project's name of a released backbone parameter; any other name comes back as it is."""
    return _rename(name, _TO_PROJECT)


def to_released_name(name: str) -> str:
    """The released name of a backbone parameter of the project; any other name comes back as it is."""
    return _rename(name, _TO_RELEASED)


def _rename(name: str, table: Iterable[tuple[str, str | Callable]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def match_state_dict(weights: dict[str, Tensor], backbone: nn.Module, where: str = '') -> dict[str, Tensor]:
    """Renames weights for a backbone and checks every name and shape before any of them is loaded.

    The released classifier (``norm``, ``head``) and the stages that ``backbone`` was built without are left out.

    Args:
        weights (dict[str, Tensor]): Weights in either form.
        backbone (EfficientMod): The network that they are for.
        where (str): What preceded the names in the checkpoint, for the message. Defaults to ''.

    Raises:
        CheckpointError: If a name or a shape does not fit.
    """
    expected = {name: value.shape for name, value in (*backbone.named_parameters(), *backbone.named_buffers())}
    if not weights:
        raise CheckpointError(
            f'the checkpoint names nothing that starts with {where!r}: weights of a backbone alone go '
            "into backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=PATH))"
        )
    later_stages = tuple(f'{part}.{i}.' for part in ('patch_embeds', 'stages') for i in range(len(backbone.stages), 10))
    matched = {to_project_name(name): value for name, value in weights.items()}
    matched = {name: value for name, value in matched.items() if not name.startswith(('norm.', 'head.', *later_stages))}
    if not matched.keys() & expected.keys() and any(name.startswith(BACKBONE_PREFIX) for name in matched):
        raise CheckpointError(f"it is a whole model's: add prefix={BACKBONE_PREFIX!r} beside its path in init_cfg")
    problems = {
        'missing': [name for name in expected if name not in matched],
        'unexpected': [name for name in matched if name not in expected],
        'of another shape': [
            f'{name} {tuple(matched[name].shape)} instead of {tuple(shape)}'
            for name, shape in expected.items()
            if name in matched and matched[name].shape != shape
        ],
    }
    if any(problems.values()):
        listed = '; '.join(f'{len(names)} {kind}: {_enumerate(names)}' for kind, names in problems.items() if names)
        raise CheckpointError(f'the checkpoint does not fit EfficientMod arch {backbone.arch!r} - {listed}')
    return matched


def _enumerate(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '') if names else 'none'


def read_pretrained(path: str) -> dict[str, Tensor]:
    """Reads the weights that ``init_cfg`` names; raises as :func:`read_checkpoint` and :func:`find_weights` do."""
    try:
        return find_weights(read_checkpoint(path), path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: download the authors' file (see the README) and name it by --cfg-options "
            'model.backbone.init_cfg.checkpoint=PATH, or start from random weights with '
            '--cfg-options model.backbone.init_cfg=None'
        ) from None


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None, map_location: str = 'cpu') -> None:
    """Loads a checkpoint of either form into a backbone: all of it or nothing.

    Args:
        backbone (EfficientMod): The network.
        checkpoint (str): A local file or any address that MMEngine's file clients take.
        prefix (str, optional): Take the names that start with it, e.g. ``'backbone.'`` for a whole detector's file.
        map_location (str): Accepted for MMEngine's sake; weights are always read to the CPU and copied.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If it cannot be read safely, holds no weights, or does not fit.
    """
    weights = read_pretrained(checkpoint)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        if not weights:
            raise CheckpointError(f'{checkpoint} names nothing that starts with {prefix!r}')
    try:
        backbone.load_state_dict(weights)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None


def convert_checkpoint(source: str, target: str, to: str = 'project', ema: bool = False) -> int:
    """Writes the weights of ``source`` under the names of the other form, with its ``meta`` and nothing else.

    Args:
        source (str): A checkpoint in either form, of a backbone, a classifier or a whole detector or segmentor.
        target (str): The file to write; it must not exist.
        to (str): ``'project'`` or ``'released'``. Defaults to ``'project'``.
        ema (bool): Take the moving average of the weights. Defaults to False.

    Returns:
        int: The number of names that changed.

    Raises:
        FileNotFoundError: If ``source`` does not exist.
        FileExistsError: If ``target`` does.
        CheckpointError: If ``source`` cannot be read safely or holds no EfficientMod.
    """
    if os.path.exists(target):
        raise FileExistsError(f'{target} exists: remove it or choose another name')
    checkpoint = read_checkpoint(source)
    weights = find_weights(checkpoint, source, ema)
    prefix = BACKBONE_PREFIX if any(name.startswith(BACKBONE_PREFIX) for name in weights) else ''
    own = {name: name[len(prefix) :] for name in weights if name.startswith(prefix)}
    if 'patch_embeds.0.proj.weight' not in {to_project_name(name) for name in own.values()}:
        raise CheckpointError(f'{source} holds no EfficientMod; its names are: {_enumerate(weights)}')
    rename = {'project': to_project_name, 'released': to_released_name}[to]
    renamed = {name: prefix + rename(own[name]) if name in own else name for name in weights}
    output = dict(meta=checkpoint.get('meta', {}), state_dict={renamed[name]: weights[name] for name in weights})
    partial = f'{target}.partial'
    torch.save(output, partial)
    os.replace(partial, target)
    return sum(old != new for old, new in renamed.items())
