"""Fits the weights of a checkpoint to a backbone and loads them.

Two forms exist. *Released* files come from the authors' timm 0.6 trainer (ImageNet) or from MMCV 1.x (COCO, ADE20K);
*project* files come from MMEngine and name the parameters as :class:`mmefficientmod.models.EfficientMod` does. The
backbone takes either.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import traceback
from collections.abc import Iterable
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..utils import UserError
from .names import BACKBONE_PREFIX, MAX_STAGES, STEM, to_project_name
from .reading import read_checkpoint
from .weights import COPY, check_values, enumerate_names, is_deploy_form, pick_weights


class Fit(NamedTuple):
    """How the weights of a checkpoint fit a backbone."""

    weights: dict[str, Tensor]  # by the project's names, without those left out
    left_out: list[str]  # the classifier, and stages that the backbone was built without
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]  # each with both shapes
    arch: str

    @property
    def num_loaded(self) -> int:
        return len(self.weights) - len(self.unexpected)

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    def misfit(self) -> UserError:
        """What does not fit, in one line."""
        kinds = {'missing': self.missing, 'unexpected': self.unexpected, 'of another shape': self.misshaped}
        listed = '; '.join(f'{len(names)} {kind}: {enumerate_names(names)}' for kind, names in kinds.items() if names)
        return UserError(f'the checkpoint does not fit EfficientMod arch {self.arch!r} - {listed}')


def _fit(weights: dict[str, Tensor], backbone: nn.Module) -> Fit:
    expected = {name: value for name, value in backbone.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    unbuilt = tuple(
        f'{part}.{i}.' for part in ('patch_embeds', 'stages') for i in range(len(backbone.stages), MAX_STAGES)
    )
    renamed, left_out = {}, []
    for name, value in weights.items():
        project_name = to_project_name(name)
        if project_name.startswith(('norm.', 'head.', *unbuilt)):
            left_out.append(project_name)
        elif project_name in renamed:
            raise UserError(f'the checkpoint holds {project_name} under both names')
        else:
            renamed[project_name] = value
    return Fit(
        renamed,
        left_out,
        missing=[name for name in expected if name not in renamed],
        unexpected=[name for name in renamed if name not in expected],
        misshaped=[
            f'{name} {tuple(renamed[name].shape)} instead of {tuple(value.shape)}'
            for name, value in expected.items()
            if name in renamed and renamed[name].shape != value.shape
        ],
        arch=backbone.arch,
    )


def _check_form(names: Iterable[str], backbone: nn.Module) -> None:
    """Raises UserError where the backbone is in the inference form and the weights are not."""
    names = [name for name in names if name.startswith('stages.')]
    if names and backbone.deploy and not is_deploy_form(names):
        raise UserError(
            'this is the training form: remove deploy=True from the backbone and call switch_to_deploy() after loading'
        )


def _form_of(weights: Iterable[str], backbone: nn.Module) -> nn.Module:
    """The backbone itself, or a copy in the inference form where the weights are in it and the backbone is not."""
    if backbone.deploy or not is_deploy_form(weights):
        return backbone
    deployed = copy.deepcopy(backbone)
    try:
        deployed.switch_to_deploy()
    except ValueError as error:
        raise UserError(f'this is the inference form, which the backbone cannot take: {error}') from None
    return deployed


def fit_all(weights: dict[str, Tensor], backbone: nn.Module) -> Fit:
    """Raises UserError unless every name, shape and value fits."""
    fit = _fit(weights, backbone)
    if not fit.fits:
        if not fit.num_loaded and any(name.startswith(BACKBONE_PREFIX) for name in fit.unexpected):
            raise UserError(f"it is a whole model's: add prefix={BACKBONE_PREFIX!r} beside its path in init_cfg")
        _check_form(fit.weights, backbone)
        raise fit.misfit()
    check_values(fit.weights)
    return fit


def rename_for_loading(weights: dict[str, Tensor], backbone: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Renames what ``load_state_dict`` hands to a backbone, and refuses what would ruin a run.

    torch's ``load_state_dict`` raises or returns missing and unexpected names, as its caller wants: only a wrong shape
    is refused here, before anything is loaded. MMEngine's ``load_checkpoint``, which stands behind ``load_from``,
    ``--resume``, tests and inferencers, only warns of all three. There, weights of which none fits, weights of the
    training form for a backbone of the inference form and unusable ones are refused as well; a partial match is one
    warning. Weights of the inference form switch the backbone to it.

    Args:
        weights (dict[str, Tensor]): Weights in either form, without ``prefix``.
        backbone (EfficientMod): The network that they are for.
        prefix (str): What preceded the names in the checkpoint, for the message.

    Returns:
        dict[str, Tensor]: The same by the project's names, without classifier (``norm``, ``head``) and unbuilt stages.

    Raises:
        UserError: In the cases above.
    """
    by_mmengine = is_called_by_mmengine()
    form = _form_of(weights, backbone) if by_mmengine else backbone
    fit = _fit(weights, form)
    if fit.misshaped:
        raise fit.misfit()
    if not by_mmengine:
        return fit.weights
    if not weights:
        raise UserError(
            f'the checkpoint names nothing that starts with {prefix!r}: weights of a backbone alone go '
            "into backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=PATH))"
        )
    if not fit.num_loaded:
        raise fit.misfit()
    if not fit.fits:
        _check_form(fit.weights, form)
    check_values(fit.weights)
    if form is not backbone:
        backbone.switch_to_deploy()
    if not fit.fits:
        print_log(
            f'EfficientMod arch {fit.arch!r} is loaded in part: {fit.num_loaded} tensors loaded; '
            f'{len(fit.missing)} missing: {enumerate_names(fit.missing)}; '
            f'{len(fit.unexpected)} unexpected: {enumerate_names(fit.unexpected)}',
            logger='current',
            level=logging.WARNING,
        )
    return fit.weights


def is_called_by_mmengine() -> bool:
    """Whether MMEngine's function loads a state dict now, not torch's method: both pass modules the same arguments."""
    loaders = ('mmengine.runner.checkpoint', 'torch.nn.modules.module')
    callers = (frame.f_globals.get('__name__') for frame, _ in traceback.walk_stack(None))
    return next((name for name in callers if name in loaders), None) == loaders[0]


def read_pretrained(path: str, ema: bool = False) -> tuple[dict[str, Tensor], bool]:
    """The weights that ``init_cfg`` names, and whether they are a moving average.

    Raises as :func:`read_checkpoint` and :func:`find_weights` do.
    """
    try:
        return pick_weights(read_checkpoint(path), path, ema)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: download the authors' file (see the README) and name it by --cfg-options "
            'model.backbone.init_cfg.checkpoint=PATH, or start without it (from random weights, by load_from or by '
            '--resume) with --cfg-options model.backbone.init_cfg=None'
        ) from None


def load_pretrained(
    backbone: nn.Module, checkpoint: str, prefix: str | None = None, ema: bool = False, map_location: str = 'cpu'
) -> None:
    """Loads a checkpoint of either form into a backbone, all of it or nothing, and logs what was loaded.

    Where the file is for 3 input channels and the backbone for another number, the stem is adapted as timm does it.

    Args:
        backbone (EfficientMod): The network.
        checkpoint (str): A local file or any address that MMEngine's file clients take.
        prefix (str, optional): Take the names that start with it, e.g. ``'backbone.'`` for a whole detector's file.
        ema (bool): Take the moving average of the weights. Defaults to False: the plain copy where there is one.
        map_location (str): Accepted for MMEngine's sake; weights are always read to the CPU and copied.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If it cannot be read safely, holds no weights, or does not fit.
    """
    weights, is_average = read_pretrained(checkpoint, ema)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        if not weights:
            raise UserError(f'{checkpoint} names nothing that starts with {prefix!r}')
    try:
        fit, notes = meet(weights, backbone)
        backbone.load_state_dict(fit.weights)
    except UserError as error:
        raise UserError(f'{checkpoint}: {error}') from None
    message = f'EfficientMod arch {fit.arch!r}: {len(fit.weights)} tensors loaded from {checkpoint}, {COPY[is_average]}'
    print_log('; '.join([message, *notes]), logger='current')


def meet(weights: dict[str, Tensor], backbone: nn.Module) -> tuple[Fit, list[str]]:
    """Makes weights of either form and a backbone fit: adapts the stem to its channels, switches it to their form.

    Returns:
        tuple[Fit, list[str]]: The weights, and for the log what was done to them.

    Raises:
        UserError: If anything else does not fit. The backbone is left as it is.
    """
    notes = []
    stem = next((name for name in weights if to_project_name(name) == STEM), None)
    in_channels = backbone.patch_embeds[0].proj.in_channels
    if stem and in_channels != 3 and weights[stem].shape[1:2] == (3,):
        check_values({STEM: weights[stem]})
        weights = {**weights, stem: adapt_stem(weights[stem], in_channels)}
        notes.append(f'stem adapted from 3 to {in_channels} input channels')
    form = _form_of(weights, backbone)
    fit = fit_all(weights, form)
    if form is not backbone:
        backbone.switch_to_deploy()
    if fit.left_out:
        parts = dict.fromkeys(re.sub(r'^(\w+\.\d+|\w+).*', r'\1', name) for name in fit.left_out)
        notes.append(f'left out: {", ".join(parts)}')
    if backbone.deploy:
        notes.append('inference form, which is not trained')
    return fit, notes


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Adapts a convolution's weight (C, 3, K, K) to another number of input channels: (C, in_channels, K, K).

    One channel takes the sum of the three; more take them in turn, times ``3 / in_channels``.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))  # sums in half precision lose digits
    if in_channels == 1:
        wide = wide.sum(1, keepdim=True)
    else:
        wide = wide.repeat(1, math.ceil(in_channels / 3), 1, 1)[:, :in_channels] * (3 / in_channels)
    return wide.to(weight.dtype)
