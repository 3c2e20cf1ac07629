"""Checkpoints: reading them safely, the names of the released ones, conversion between both forms.

Two forms exist. *Released* files come from the authors' timm 0.6 trainer (ImageNet) or from MMCV 1.x (COCO, ADE20K);
*project* files come from MMEngine and name the parameters as :class:`mmefficientmod.models.EfficientMod` does. The
backbone takes either.
"""

from __future__ import annotations

import argparse
import codecs
import logging
import math
import os
import pickle
import re
import sys
import tarfile
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from mmengine.fileio import get_local_path, isfile
from mmengine.logging import HistoryBuffer, print_log
from mmengine.utils import digit_version
from torch import Tensor, nn, serialization

# Where a checkpoint keeps its weights. The plain copy comes before the moving average, as in the authors' own loader.
WEIGHT_KEYS = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
BACKBONE_PREFIX = 'backbone.'
WEIGHT_DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
STEM = 'patch_embeds.0.proj.weight'

# How the name of a parameter begins within its block: released -> project. The longer beginning comes first.
_BLOCK_PARTS = (
    ('mlp.context_layer.context_list.0.', 'context.dwconv.'),
    ('mlp.context_layer.', 'context.'),
    ('mlp.fc1.', 'fc1.'),
    ('mlp.fc2.', 'fc2.'),
    ('gamma_1', 'gamma'),
)

# Below torch 2.6 `weights_only=True` is not safe for tar and TorchScript archives (CVE-2025-32434).
_TORCH_READS_SAFELY = digit_version(torch.__version__) >= digit_version('2.6')


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit; the message is one line that says why."""


def allow_safe_globals() -> None:
    """Lets MMEngine read its own checkpoints, written under NumPy 1 or 2, wherever it could read one of them.

    From torch 2.6 on MMEngine loads checkpoints by torch's safe loader: what they hold beside tensors, classes of plain
    data, goes to the loader's allow-list. Before, the loader imports NumPy 2's names, which NumPy 1.26 is the first to
    know.
    """
    if _TORCH_READS_SAFELY:
        serialization.add_safe_globals([(value, name) for name, value in _plain_data().items()])
    elif digit_version(np.__version__) < digit_version('1.26'):
        sys.modules.setdefault('numpy._core.multiarray', np.core.multiarray)


def _plain_data() -> dict[str, Any]:
    """What checkpoints hold beside tensors: a timm trainer's arguments, MMEngine's log history, NumPy's arrays."""
    array, scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['Float'] + '?SU']
    return {
        'argparse.Namespace': argparse.Namespace,
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': _history_statistics,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        **{f'{kind.__module__}.{kind.__name__}': kind for kind in dtypes},
        # NumPy 2 calls its internals `_core`.
        **{f'{core}.multiarray._reconstruct': array for core in ('numpy.core', 'numpy._core')},
        **{f'{core}.multiarray.scalar': scalar for core in ('numpy.core', 'numpy._core')},
    }


def _history_statistics(owner: type, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: it finds a log history's statistics and nothing else."""
    if owner is not HistoryBuffer or name not in ('mean', 'max', 'min', 'current'):
        raise pickle.UnpicklingError(f'function builtins.getattr of {owner!r} and {name!r}')
    return getattr(owner, name)


class _Unpickler(pickle._Unpickler):
    """Reads pickles of tensors and plain data where torch's own safe loader is not safe enough."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            **torch._weights_only_unpickler._get_allowed_globals(),
            **_plain_data(),
            '__builtin__.getattr': _history_statistics,
            '_codecs.encode': codecs.encode,
        }
        full_name = f'{module}.{name}'
        if full_name not in allowed:
            raise pickle.UnpicklingError(f'class {full_name}')
        return allowed[full_name]

    def load_build(self) -> None:
        kinds = Tensor, OrderedDict, argparse.Namespace, HistoryBuffer, np.ndarray, np.dtype
        if not isinstance(self.stack[-2], kinds):  # never the attributes of a class or a function
            raise pickle.UnpicklingError(f'class {type(self.stack[-2]).__module__}.{type(self.stack[-2]).__name__}')
        super().load_build()

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


class _SafePickle:
    """The part of the module ``pickle`` that torch's readers of both file formats use."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: BinaryIO, **kwargs: Any) -> Any:
        return _Unpickler(file, **kwargs).load()


def _load_file(path: str) -> Any:
    """The content of a local file; every torch from 2.1 on raises as the safe loader of torch 2.6 does."""
    with open(path, 'rb') as file:
        if _TORCH_READS_SAFELY:
            return torch.load(file, map_location='cpu', weights_only=True)
        if serialization._is_zipfile(file):
            with serialization._open_zipfile_reader(file) as archive:
                if serialization._is_torchscript_zip(archive):
                    raise RuntimeError('TorchScript archive')
                return serialization._load(archive, 'cpu', _SafePickle, encoding='utf-8')
        if tarfile.is_tarfile(path):
            raise RuntimeError('.tar format')
        return serialization._legacy_load(file, 'cpu', _SafePickle, encoding='utf-8')


def read_checkpoint(path: str) -> dict:
    """Reads a checkpoint to the CPU without running code from it.

    Args:
        path (str): A local file or any address that MMEngine's file clients take.

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
            checkpoint = _load_file(local_path)
        except (
            *(pickle.UnpicklingError, RuntimeError, EOFError, OSError),
            *(ValueError, TypeError, LookupError, AttributeError, AssertionError),
        ) as error:
            archive = re.search(r'TorchScript|\.tar format', str(error))
            if archive is not None:
                kind = {'TorchScript': 'a TorchScript archive', '.tar format': "a tar archive of torch's first format"}
                raise CheckpointError(
                    f'{path} is refused: it is {kind[archive[0]]}, which could run code; take one of bare weights'
                ) from error
            asked = re.search(r'(?:GLOBAL|class|function) ([\w.]+\.\w+)', str(error))
            if asked is None or not isinstance(error, pickle.UnpicklingError):
                raise CheckpointError(f'{path} is truncated or no PyTorch checkpoint') from error
            raise CheckpointError(
                f'{path} is refused: to be read it asks for {asked[1]}, which could run code; take one of bare weights'
            ) from error
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
    return _pick_weights(checkpoint, path, ema)[0]


def _pick_weights(checkpoint: dict, path: str, ema: bool = False) -> tuple[dict[str, Tensor], bool]:
    """The weights of a checkpoint and whether they are a moving average."""
    is_ema = {key: key.endswith('_ema') for key in WEIGHT_KEYS}
    if 'ema_state_dict' in checkpoint:  # MMEngine's EMAHook, which swaps the copies when it saves
        is_ema['state_dict'] = True
    keys = [key for key in WEIGHT_KEYS if is_ema[key] or not ema]
    key = next((key for key in keys if isinstance(checkpoint.get(key), dict)), None)
    found = checkpoint[key] if key else {} if ema else checkpoint
    weights = {re.sub(r'^module\.', '', str(name)): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        kind = 'moving average of the weights' if ema else 'weights'
        raise CheckpointError(f'{path} holds no {kind}; its entries are: {_enumerate(map(str, checkpoint))}')
    return weights, is_ema.get(key, False)


def to_project_name(name: str) -> str:
    """The project's name of a released backbone parameter; any other name comes back as it is."""
    match = re.match(r'(?:patch_embed|layers\.(\d+)\.(?:(downsample)|blocks\.(\d+)))\.', name)
    if match is None:
        return name
    (stage, downsample, block), part = match.groups(), name[match.end() :]
    if block is None:
        return f'patch_embeds.{int(stage) + 1 if downsample else 0}.{part}'
    return f'stages.{stage}.{block}.{_swap_beginning(part, _BLOCK_PARTS)}'


def to_released_name(name: str) -> str:
    """The released name of a backbone parameter of the project; any other name comes back as it is."""
    match = re.match(r'(?:patch_embeds\.(\d+)|stages\.(\d+)\.(\d+))\.', name)
    if match is None:
        return name
    (embed, stage, block), part = match.groups(), name[match.end() :]
    if embed is not None:
        return f'layers.{int(embed) - 1}.downsample.{part}' if int(embed) else f'patch_embed.{part}'
    return f'layers.{stage}.blocks.{block}.{_swap_beginning(part, [pair[::-1] for pair in _BLOCK_PARTS])}'


def _swap_beginning(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    return next((new + name[len(old) :] for old, new in pairs if name.startswith(old)), name)


class _Fit(NamedTuple):
    """How the weights of a checkpoint fit a backbone."""

    weights: dict[str, Tensor]  # by the project's names, without what is left out
    left_out: list[str]  # the classifier and the stages that the backbone was built without
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]  # names with both shapes

    @property
    def problems(self) -> str:
        """What does not fit, in one line; empty if all of it does."""
        kinds = {'missing': self.missing, 'unexpected': self.unexpected, 'of another shape': self.misshaped}
        return '; '.join(f'{len(names)} {kind}: {_enumerate(names)}' for kind, names in kinds.items() if names)


def _compare(weights: dict[str, Tensor], backbone: nn.Module) -> _Fit:
    expected = {
        name: value.shape
        for values in (backbone.named_parameters(remove_duplicate=False), backbone.named_buffers())
        for name, value in values
    }
    unbuilt = tuple(f'{part}.{i}.' for part in ('patch_embeds', 'stages') for i in range(len(backbone.stages), 10))
    renamed = {name: to_project_name(name) for name in weights}
    twice = [name for name, count in Counter(renamed.values()).items() if count > 1]
    if twice:
        raise CheckpointError(f'the checkpoint names {len(twice)} weights in both forms: {_enumerate(twice)}')
    left_out = [name for name in renamed.values() if name.startswith(('norm.', 'head.', *unbuilt))]
    matched = {new: weights[old] for old, new in renamed.items() if new not in left_out}
    return _Fit(
        matched,
        left_out,
        missing=[name for name in expected if name not in matched],
        unexpected=[name for name in matched if name not in expected],
        misshaped=[
            f'{name} {tuple(matched[name].shape)} instead of {tuple(shape)}'
            for name, shape in expected.items()
            if name in matched and matched[name].shape != shape
        ],
    )


def _check_form(names: Iterable[str], backbone: nn.Module) -> None:
    """Raises CheckpointError where one is the inference form and the other is not."""
    names = [name for name in names if name.startswith('stages.')]
    if names and is_deploy_form(names) != backbone.deploy:
        raise CheckpointError(
            'this is the training form: remove deploy=True from the backbone, and call switch_to_deploy() after loading'
            if backbone.deploy
            else 'this is the inference form: add deploy=True to the backbone'
        )


def is_deploy_form(names: Iterable[str]) -> bool:
    """Whether parameters of these names (the project's) belong to blocks after ``switch_to_deploy()``."""
    return not any(re.match(r'stages\.\d+\.\d+\.(norm\d?\.|gamma)', name) for name in names)


def check_values(weights: dict[str, Tensor]) -> None:
    """Raises CheckpointError with the name of the first tensor that holds no usable weights."""
    for name, value in weights.items():
        problem = _value_problem(value)
        if problem:
            raise CheckpointError(f'the weights {name} {problem}: save them as dense, finite floating-point tensors')


def _value_problem(value: Tensor) -> str | None:
    if not isinstance(value, Tensor):
        return f'are a {type(value).__name__}, no tensor'
    if value.is_meta:
        return 'are on the meta device, without values'
    if value.layout != torch.strided or value.is_nested:
        return 'are nested' if value.is_nested else f'are sparse ({value.layout})'
    if value.is_quantized or value.dtype not in WEIGHT_DTYPES:
        return f'are {value.dtype}'
    if any(size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride())):
        return f'share their storage (strides {tuple(value.stride())})'
    if not value.isfinite().all():
        return 'hold NaN or Inf'
    return None


def match_state_dict(weights: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Renames weights for a backbone and checks every name, shape and value: all of them have to fit.

    The released classifier (``norm``, ``head``) and the stages that ``backbone`` was built without are left out.

    Args:
        weights (dict[str, Tensor]): Weights in either form.
        backbone (EfficientMod): The network that they are for.

    Raises:
        CheckpointError: If a name or a shape does not fit, or a tensor holds no usable weights.
    """
    return _match(weights, backbone).weights


def _match(weights: dict[str, Tensor], backbone: nn.Module) -> _Fit:
    fit = _compare(weights, backbone)
    if any(name.startswith(BACKBONE_PREFIX) for name in fit.unexpected) and len(fit.unexpected) == len(fit.weights):
        raise CheckpointError(f"it is a whole model's: add prefix={BACKBONE_PREFIX!r} beside its path in init_cfg")
    if fit.problems:
        _check_form(fit.weights, backbone)
        raise CheckpointError(f'the checkpoint does not fit EfficientMod arch {backbone.arch!r} - {fit.problems}')
    check_values(fit.weights)
    return fit


def rename_for_loading(weights: dict[str, Tensor], backbone: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Renames what ``load_state_dict`` hands to a backbone, and refuses what would ruin a run.

    torch's ``load_state_dict`` reports missing and unexpected names itself, so only a wrong shape is refused here,
    before anything is loaded. MMEngine's ``load_checkpoint`` only warns about all of them. There a backbone that would
    stay at random, one in the other form, and unusable weights are refused too; a partial match is one warning.

    Args:
        weights (dict[str, Tensor]): Weights in either form, without ``prefix``.
        backbone (EfficientMod): The network that they are for.
        prefix (str): What preceded the names in the checkpoint, for the messages.

    Raises:
        CheckpointError: In the cases above.
    """
    fit = _compare(weights, backbone)
    misfit = f'the checkpoint does not fit EfficientMod arch {backbone.arch!r} - {fit.problems}'
    if fit.misshaped:
        raise CheckpointError(misfit)
    if not _is_mmengine_loading():
        return fit.weights
    if not weights:
        raise CheckpointError(
            f'the checkpoint names nothing that starts with {prefix!r}: weights of a backbone alone go '
            "into backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=PATH))"
        )
    if fit.problems:
        loaded = len(fit.weights) - len(fit.unexpected)
        if not loaded:
            raise CheckpointError(misfit)
        _check_form(fit.weights, backbone)
        print_log(
            f'EfficientMod arch {backbone.arch!r} is loaded in part: {loaded} tensors loaded; '
            f'{len(fit.missing)} missing: {_enumerate(fit.missing)}; '
            f'{len(fit.unexpected)} unexpected: {_enumerate(fit.unexpected)}',
            logger='current',
            level=logging.WARNING,
        )
    check_values(fit.weights)
    return fit.weights


def _is_mmengine_loading() -> bool:
    """Whether MMEngine's function loads a state dict now, not torch's method; both call the modules in the same way."""
    callers = (frame.f_globals.get('__name__') for frame, _ in traceback.walk_stack(None))
    loaders = 'mmengine.runner.checkpoint', 'torch.nn.modules.module'
    return next((name for name in callers if name in loaders), None) == loaders[0]


def _enumerate(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '') if names else 'none'


def read_pretrained(path: str) -> dict[str, Tensor]:
    """Reads the weights that ``init_cfg`` names; raises as :func:`read_checkpoint` and :func:`find_weights` do."""
    return _read_pretrained(path)[0]


def _read_pretrained(path: str) -> tuple[dict[str, Tensor], bool]:
    try:
        return _pick_weights(read_checkpoint(path), path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: download the authors' file (see the README) and name it by --cfg-options "
            'model.backbone.init_cfg.checkpoint=PATH, or start from random weights, load_from or --resume with '
            '--cfg-options model.backbone.init_cfg=None'
        ) from None


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None, map_location: str = 'cpu') -> None:
    """Loads a checkpoint of either form into a backbone: all of it or nothing. One line of the log says what.

    Where the backbone has other than 3 input channels and the file has 3, the stem is adapted as timm does it.

    Args:
        backbone (EfficientMod): The network.
        checkpoint (str): A local file or any address that MMEngine's file clients take.
        prefix (str, optional): Take the names that start with it, e.g. ``'backbone.'`` for a whole detector's file.
        map_location (str): Accepted for MMEngine's sake; weights are always read to the CPU and copied.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If it cannot be read safely, holds no weights, or does not fit.
    """
    weights, is_ema = _read_pretrained(checkpoint)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        if not weights:
            raise CheckpointError(f'{checkpoint} names nothing that starts with {prefix!r}')
    notes = []
    in_channels = backbone.patch_embeds[0].proj.in_channels
    for name, value in weights.items():
        if to_project_name(name) == STEM and value.ndim == 4 and value.shape[1] == 3 != in_channels:
            weights[name] = adapt_stem(value, in_channels)
            notes.append(f'stem adapted from 3 to {in_channels} input channels')
    try:
        fit = _match(weights, backbone)
        backbone.load_state_dict(fit.weights)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    if fit.left_out:
        parts = OrderedDict.fromkeys(re.match(r'(?:patch_embeds|stages)\.\d+|\w+', name)[0] for name in fit.left_out)
        notes.append(f'left out: {", ".join(parts)}')
    print_log(
        f'{checkpoint}: {len(fit.weights)} tensors ({"EMA" if is_ema else "plain"} copy) loaded into EfficientMod arch '
        f'{backbone.arch!r}' + ''.join(f'; {note}' for note in notes),
        logger='current',
    )


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Fits a convolution of 3 input channels (C, 3, K, K) to another number of them: (C, in_channels, K, K).

    One channel takes the sum. More take the three in turn, rescaled by ``3 / in_channels``, so that the response to an
    image of equal channels stays about the same.
    """
    wide = weight.float()  # sums in half precision lose digits
    if in_channels == 1:
        wide = wide.sum(1, keepdim=True)
    else:
        wide = wide.repeat(1, math.ceil(in_channels / 3), 1, 1)[:, :in_channels] * (3 / in_channels)
    return wide.to(weight.dtype)


def _read_arch(weights: dict[str, Tensor]) -> dict:
    """The fields of ``EfficientMod(arch=dict(...))`` that have weights of these shapes (the project's names)."""
    fields = dict(embed_dims=[], depths=[], attn_depths=[], ratio=1, attn_ratios=[], drop_path_rate=0.0)
    while f'patch_embeds.{len(fields["depths"])}.proj.weight' in weights:
        i = len(fields['depths'])
        dims = weights[f'patch_embeds.{i}.proj.weight'].shape[0]
        widths = {}  # of each block's value branch or MLP; attention blocks have negative numbers
        for name, value in weights.items():
            match = re.match(rf'stages\.{i}\.(\d+)\.(.+)', name)
            if match and match[2] == 'fc1.weight':
                widths[int(match[1])] = value.shape[0]
        attention = [j for j in widths if f'stages.{i}.{j}.attn.qkv.weight' in weights]
        blocks = 1 + max(widths, default=-1)
        fields['embed_dims'].append(dims)
        fields['depths'].append(blocks - len(attention))
        fields['attn_depths'].append(len(attention))
        fields['attn_ratios'].append((widths[attention[0]] + 0.5) / dims if attention else 4)
        modulation = [width // dims for j, width in widths.items() if j not in attention and j % 2]
        fields['ratio'] = modulation[0] if modulation else fields['ratio']
    return fields


def check_complete(weights: dict[str, Tensor]) -> None:
    """Checks that weights (the project's names) are a whole EfficientMod; one of fewer stages counts as whole.

    The arch is found by the shapes. Where the channels are those of no published arch, every block has to be whole.

    Raises:
        CheckpointError: If a name or a shape does not fit, or a tensor holds no usable weights.
    """
    from .models import EfficientMod  # here: the networks import this module

    if STEM not in weights or weights[STEM].ndim != 4:
        raise CheckpointError(f'it holds no EfficientMod; its names are: {_enumerate(weights)}')
    found = _read_arch(weights)
    num_stages = len(found['embed_dims'])
    archs = [
        arch
        for arch, setting in EfficientMod.arch_settings.items()
        if list(setting['embed_dims'][:num_stages]) == found['embed_dims']
    ]
    if 'norm.weight' in weights and archs:  # a classifier has all stages
        num_stages = 4
    for arch in archs or [found]:
        try:
            with torch.device('meta'):
                backbone = EfficientMod(
                    arch,
                    in_channels=weights[STEM].shape[1],
                    out_indices=num_stages - 1,
                    deploy=is_deploy_form(weights),
                )
            match_state_dict(weights, backbone)
            return
        except CheckpointError as error:
            problem = error
    raise problem


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
        CheckpointError: If ``source`` cannot be read safely or holds no whole EfficientMod.
    """
    if os.path.exists(target):
        raise FileExistsError(f'{target} exists: remove it or choose another name')
    checkpoint = read_checkpoint(source)
    weights = find_weights(checkpoint, source, ema)
    prefix = BACKBONE_PREFIX if any(name.startswith(BACKBONE_PREFIX) for name in weights) else ''
    own = {name: name[len(prefix) :] for name in weights if name.startswith(prefix)}
    try:
        backbone = {to_project_name(short): weights[name] for name, short in own.items()}
        check_complete(backbone)
        if to == 'released' and is_deploy_form(backbone):
            raise CheckpointError("it is the inference form, which the authors' network does not have")
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None
    rename = {'project': to_project_name, 'released': to_released_name}[to]
    renamed = {name: prefix + rename(own[name]) if name in own else name for name in weights}
    output = dict(meta=checkpoint.get('meta', {}), state_dict={renamed[name]: weights[name] for name in weights})
    partial = f'{target}.partial'
    torch.save(output, partial)
    os.replace(partial, target)
    return sum(old != new for old, new in renamed.items())
