"""Converts checkpoints: to the authors' names or the project's, to the deploy form, and for publication."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.loading import fit_all
from ..checkpoints.names import BACKBONE_PREFIX, STEM, to_bare_names, to_project_name, to_released_name
from ..checkpoints.reading import read_checkpoint
from ..checkpoints.weights import check_values, is_deploy_form, pick_weights
from ..models import EfficientMod
from ..utils import UserError, enumerate_names, first_line, replace_file
from ..version import __version__


class Conversion(NamedTuple):
    """What :func:`convert_checkpoint` wrote."""

    changed: int  # number of names that differ from the source's
    form: str  # 'training' or 'deploy'
    is_average: bool  # whether the weights are a moving average


def convert_checkpoint(
    source: str, target: str, to: str = 'project', ema: bool = False, deploy: bool = False
) -> Conversion:
    """Writes the weights of ``source`` with the names of the other form, with its ``meta`` and nothing else.

    Args:
        source (str): A checkpoint in either form, of a backbone, a classifier or a whole detector or segmentor.
        target (str): The file to write; it must not exist.
        to (str): ``'project'`` or ``'released'``. Defaults to ``'project'``.
        ema (bool): Take the moving average of the weights. Defaults to False.
        deploy (bool): Turn the backbone into its deploy form, which needs the project's names. Defaults to False.

    Returns:
        Conversion: What was written.

    Raises:
        FileNotFoundError: If ``source`` does not exist.
        UserError: If ``target`` exists or cannot be written, ``source`` cannot be read safely or holds no complete
            EfficientMod, or the deploy form is asked for with the released names. No file is left behind.
    """
    if deploy and to != 'project':
        raise UserError("the authors' code has no deploy form: leave out either --deploy or --to released")
    if os.path.lexists(target):  # also a link that leads nowhere
        raise UserError(f'{target} exists: remove it or choose another name')
    content = read_checkpoint(source)
    given, is_average = pick_weights(content, source, ema)
    weights = to_bare_names(given) if to == 'released' else given
    prefix = BACKBONE_PREFIX if any(name.startswith(BACKBONE_PREFIX) for name in weights) else ''
    try:
        backbone = find_network({name[len(prefix) :]: weights[name] for name in weights if name.startswith(prefix)})
        if to == 'released' and backbone.deploy:
            raise UserError("this is the deploy form, which the authors' code does not have")
    except UserError as error:
        raise UserError(f'{source}: {error}') from None
    rename = {'project': to_project_name, 'released': to_released_name}[to]
    names = [prefix + rename(name[len(prefix) :]) if name.startswith(prefix) else name for name in weights]
    state = dict(zip(names, weights.values()))
    form = 'deploy' if deploy or backbone.deploy else 'training'
    if deploy and not backbone.deploy:
        state = _fold(state, backbone, prefix)
    _write(dict(meta=_note_form(content.get('meta'), form), state_dict=state), target)
    return Conversion(sum(old != new for old, new in zip(given, names)), form, is_average)


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


def _note_form(meta: object, form: str) -> dict:
    """A checkpoint's ``meta``, which may be anything in a file, with the form of the backbone."""
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    return {**meta, 'mmefficientmod': dict(form=form, version=__version__)} if form == 'deploy' else meta


def _fold(state: dict[str, Tensor], backbone: EfficientMod, prefix: str) -> dict[str, Tensor]:
    """A state dict with its backbone in the deploy form: folded in float32 or wider, kept in the dtype of the file."""
    trained = {name: state[prefix + name] for name in backbone.state_dict()}
    dtype = trained[STEM].dtype
    backbone = backbone.to_empty(device='cpu').to(torch.promote_types(dtype, torch.float32))
    backbone.load_state_dict(trained)
    backbone.switch_to_deploy()
    others = {name: value for name, value in state.items() if name not in {prefix + name for name in trained}}
    return {**others, **{prefix + name: value.to(dtype) for name, value in backbone.state_dict().items()}}


def _write(content: dict, target: str) -> None:
    """Writes a checkpoint in one step; an error leaves nothing behind."""
    buffer = BytesIO()  # given a name, torch would write it into the file and change its hash
    torch.save(content, buffer)
    try:
        replace_file(Path(target), buffer.getbuffer())
    except OSError as error:
        raise UserError(f'{target} cannot be written: {error.strerror or first_line(error)}') from error


def find_network(weights: dict[str, Tensor]) -> EfficientMod:
    """Builds the EfficientMod that weights in either form are complete for, with or without its last stages.

    Widths of a published arch stand for that arch or one with more blocks; any other arch follows from the shapes.

    Returns:
        EfficientMod: The network, on the meta device.

    Raises:
        UserError: If a name or a shape does not fit, or a tensor holds no usable weights.
    """
    named = {to_project_name(name): value for name, value in weights.items()}
    found = _find_arch(named)
    num_stages = len(found['embed_dims'])
    arch = next((name for name in EfficientMod.arch_settings if _is_meant(name, found)), None)
    if arch and 'norm.weight' in named:  # a classifier has all stages
        num_stages = 4
    with torch.device('meta'):
        backbone = EfficientMod(
            arch or found, in_channels=named[STEM].shape[1], out_indices=num_stages - 1, deploy=is_deploy_form(named)
        )
    fit_all(weights, backbone)
    check_values(weights)  # the classifier's, too
    return backbone


def _is_meant(name: str, found: dict) -> bool:
    """Whether weights have the widths of a published arch, and its blocks or, damaged, fewer in some stage."""
    setting: dict = EfficientMod.arch_settings[name]
    stages = range(len(found['embed_dims']))
    if list(setting['embed_dims'][: len(stages)]) != found['embed_dims']:
        return False
    blocks = [(found[key][i], setting[key][i]) for key in ('depths', 'attn_depths') for i in stages]
    return any(number < published for number, published in blocks) or all(a == b for a, b in blocks)


def _find_arch(weights: dict[str, Tensor]) -> dict:
    """The fields of ``EfficientMod(arch=...)`` that follow from the names (the project's) and shapes of weights."""

    def rows(name: str) -> int:
        if name not in weights or weights[name].ndim < 2:
            raise UserError(
                f'the file holds no complete EfficientMod: {name} is missing, there is {enumerate_names(weights, 3)}'
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
