"""Writes checkpoints anew: by the authors' names or the project's, in the inference form, for publication."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.loading import fit_all
from ..checkpoints.names import BACKBONE_PREFIX, STEM, to_bare_names, to_project_name, to_released_name
from ..checkpoints.reading import read_checkpoint
from ..checkpoints.weights import check_values, enumerate_names, is_deploy_form, pick_weights
from ..models import EfficientMod
from ..utils import UserError, first_line
from ..version import __version__


class Conversion(NamedTuple):
    """What :func:`convert_checkpoint` wrote."""

    changed: int  # names
    form: str  # 'training' or 'deploy'
    is_average: bool  # whether the weights are a moving average


def convert_checkpoint(
    source: str, target: str, to: str = 'project', ema: bool = False, deploy: bool = False
) -> Conversion:
    """Writes the weights of ``source`` under the names of the other form, with its ``meta`` and nothing else.

    Args:
        source (str): A checkpoint in either form, of a backbone, a classifier or a whole detector or segmentor.
        target (str): The file to write; it must not exist.
        to (str): ``'project'`` or ``'released'``. Defaults to ``'project'``.
        ema (bool): Take the moving average of the weights. Defaults to False.
        deploy (bool): Turn the backbone into its inference form, which needs the project's names. Defaults to False.

    Returns:
        Conversion: What was written.

    Raises:
        FileNotFoundError: If ``source`` does not exist.
        FileExistsError: If ``target`` does.
        OSError: If ``target`` cannot be written; nothing is left of it.
        ValueError: If the inference form is asked for under the released names.
        UserError: If ``source`` cannot be read safely or holds no whole EfficientMod.
    """
    if deploy and to != 'project':
        raise ValueError("the authors' code has no inference form: leave out either --deploy or --to released")
    if os.path.exists(target):
        raise FileExistsError(f'{target} exists: remove it or choose another name')
    checkpoint = read_checkpoint(source)
    weights, is_average = pick_weights(checkpoint, source, ema)
    names = list(weights)
    if to == 'released':
        weights = to_bare_names(weights)
    prefix = BACKBONE_PREFIX if any(name.startswith(BACKBONE_PREFIX) for name in weights) else ''
    own = {name: name[len(prefix) :] for name in weights if name.startswith(prefix)}
    short = {short: weights[name] for name, short in own.items()}
    try:
        backbone = check_complete(short)
        if to == 'released' and backbone.deploy:
            raise UserError("this is the inference form, which the authors' code does not have")
    except UserError as error:
        raise UserError(f'{source}: {error}') from None
    rename = {'project': to_project_name, 'released': to_released_name}[to]
    renamed = {name: prefix + rename(own[name]) if name in own else name for name in weights}
    state = {renamed[name]: weights[name] for name in weights}
    if deploy and not backbone.deploy:
        trained = backbone.state_dict()
        state = {n: v for n, v in state.items() if not (n.startswith(prefix) and n[len(prefix) :] in trained)}
        state.update((prefix + name, value) for name, value in _fold(backbone, short).items())
    form = 'deploy' if deploy or backbone.deploy else 'training'
    meta = checkpoint.get('meta')
    meta = dict(meta) if isinstance(meta, Mapping) else {}  # a file may hold anything there
    if form == 'deploy':
        meta['mmefficientmod'] = dict(form=form, version=__version__)
    _write(dict(meta=meta, state_dict=state), target)
    return Conversion(sum(old != new for old, new in zip(names, renamed.values())), form, is_average)


def publish(path: str) -> str:
    """Puts the first eight hexadecimal digits of a file's SHA-256 into its name, as the MM libraries do.

    Returns:
        str: The new name, e.g. ``model-1a2b3c4d.pth`` for ``model.pth``.
    """
    with open(path, 'rb') as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    stem, suffix = os.path.splitext(path)
    published = f'{stem}-{digest[:8]}{suffix}' if suffix == '.pth' else f'{path}-{digest[:8]}.pth'
    os.replace(path, published)
    return published


def _fold(backbone: EfficientMod, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a backbone's inference form; folded in float32 or wider, kept in the type of the file."""
    dtype = weights[next(name for name in weights if to_project_name(name) == STEM)].dtype
    backbone = backbone.to_empty(device='cpu').to(torch.promote_types(dtype, torch.float32))
    backbone.load_state_dict(weights)
    backbone.switch_to_deploy()
    return {name: value.to(dtype) for name, value in backbone.state_dict().items()}


def _write(content: dict, target: str) -> None:
    """Writes a checkpoint in one step; an error leaves nothing behind."""
    partial = f'{target}.partial'
    try:
        with open(partial, 'wb') as file:  # by its name, torch would write that into the file and change its hash
            torch.save(content, file)
        os.replace(partial, target)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter where a disk is full
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise OSError(f'{target} cannot be written: {reason}') from error
    finally:
        with suppress(OSError):
            os.remove(partial)


def check_complete(weights: dict[str, Tensor]) -> EfficientMod:
    """Checks that weights in either form are a whole EfficientMod, with or without the last stages.

    Widths of a published arch mean that arch or one with more blocks; any other arch is taken as its shapes tell.

    Returns:
        EfficientMod: The network that they fit, on the meta device.

    Raises:
        UserError: If a name or a shape does not fit, or a tensor holds no usable weights.
    """
    named = {to_project_name(name): value for name, value in weights.items()}
    found_arch = _find_arch(named)
    arch: str | dict = found_arch
    num_stages = len(found_arch['embed_dims'])
    settings: dict[str, dict] = EfficientMod.arch_settings
    for name, setting in settings.items():
        if list(setting['embed_dims'][:num_stages]) == found_arch['embed_dims']:
            blocks = [
                (found_arch[key][i], setting[key][i]) for key in ('depths', 'attn_depths') for i in range(num_stages)
            ]
            if any(found < published for found, published in blocks) or all(a == b for a, b in blocks):
                arch = name
                num_stages = 4 if 'norm.weight' in named else num_stages  # a classifier has all stages
                break
    with torch.device('meta'):
        backbone = EfficientMod(
            arch, in_channels=named[STEM].shape[1], out_indices=num_stages - 1, deploy=is_deploy_form(named)
        )
    fit_all(weights, backbone)
    check_values(weights)  # those of the classifier, too
    return backbone


def _find_arch(weights: dict[str, Tensor]) -> dict:
    """The fields of ``EfficientMod(arch=...)`` for weights of these names (the project's) and shapes."""

    def rows(name: str) -> int:
        if name not in weights or weights[name].ndim < 2:
            raise UserError(f'it holds no whole EfficientMod: {name} is missing, there is {enumerate_names(weights)}')
        return weights[name].shape[0]

    embed_dims, depths, attn_depths, ratios, attn_ratios = [], [], [], [], []
    matches = [match for match in (re.match(r'stages\.(\d+)\.(\d+)\.(attn\.)?', name) for name in weights) if match]
    for i in range(1 + max((int(match[1]) for match in matches), default=0)):
        blocks = {int(match[2]) for match in matches if int(match[1]) == i}
        attention = {int(match[2]) for match in matches if int(match[1]) == i and match[3]}
        embed_dims.append(rows(f'patch_embeds.{i}.proj.weight'))
        depths.append(len(blocks - attention))
        attn_depths.append(len(attention))
        if depths[i] > 1:
            ratios.append(rows(f'stages.{i}.1.fc1.weight') // embed_dims[i])
        hidden_dims = rows(f'stages.{i}.{min(attention)}.fc1.weight') if attention else embed_dims[i]
        attn_ratios.append(Fraction(hidden_dims, embed_dims[i]))
    return dict(
        embed_dims=embed_dims,
        depths=depths,
        attn_depths=attn_depths,
        ratio=ratios[0] if ratios else 1,
        attn_ratios=attn_ratios,
        drop_path_rate=0.0,
    )
