"""Conversion of checkpoints between the authors' names and the project's."""

from __future__ import annotations

import os
import re
from fractions import Fraction

import torch
from torch import Tensor

from .checkpoint import (
    BACKBONE_PREFIX,
    STEM,
    check_values,
    enumerate_names,
    find_weights,
    fit_all,
    is_deploy_form,
    to_bare_names,
    to_project_name,
    to_released_name,
)
from .models import EfficientMod
from .safe_load import CheckpointError, read_checkpoint


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
    names = list(weights)
    if to == 'released':
        weights = to_bare_names(weights)
    prefix = BACKBONE_PREFIX if any(name.startswith(BACKBONE_PREFIX) for name in weights) else ''
    own = {name: name[len(prefix) :] for name in weights if name.startswith(prefix)}
    try:
        check_complete({short: weights[name] for name, short in own.items()})
        if to == 'released' and is_deploy_form(own):
            raise CheckpointError("this is the inference form, which the authors' code does not have")
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None
    rename = {'project': to_project_name, 'released': to_released_name}[to]
    renamed = {name: prefix + rename(own[name]) if name in own else name for name in weights}
    output = dict(meta=checkpoint.get('meta', {}), state_dict={renamed[name]: weights[name] for name in weights})
    partial = f'{target}.partial'
    torch.save(output, partial)
    os.replace(partial, target)
    return sum(old != new for old, new in zip(names, renamed.values()))


def check_complete(weights: dict[str, Tensor]) -> None:
    """Checks that weights in either form are a whole EfficientMod, with or without the last stages.

    Widths of a published arch mean that arch or one with more blocks; any other arch is taken as its shapes tell.

    Raises:
        CheckpointError: If a name or a shape does not fit, or a tensor holds no usable weights.
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


def _find_arch(weights: dict[str, Tensor]) -> dict:
    """The fields of ``EfficientMod(arch=...)`` for weights of these names (the project's) and shapes."""

    def rows(name: str) -> int:
        if name not in weights or weights[name].ndim < 2:
            raise CheckpointError(
                f'it holds no whole EfficientMod: {name} is missing, there is {enumerate_names(weights)}'
            )
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
