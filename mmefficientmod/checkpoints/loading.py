"""Fits the weights of a checkpoint to a backbone and loads them.

*Released* files come from the authors' timm 0.6 trainer (ImageNet) or from MMCV 1.x (COCO, ADE20K). *Project* files
come from MMEngine and name the parameters as :class:`mmefficientmod.models.EfficientMod` does. The backbone takes
either.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import _IncompatibleKeys as MMEngineKeys
from torch import Tensor, nn

from ..utils import UserError, enumerate_names
from .names import BACKBONE_PREFIX, STEM, to_project_name
from .reading import read_checkpoint
from .weights import COPY, check_values, is_deploy_form, pick_weights


def load_whole(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Loads a state dict into any model, all of it, or says in one line what does not fit.

    The names are judged as the model's ``load_state_dict`` judges them: an EfficientMod in it takes released names.
    Counters of batch norms (``num_batches_tracked``) may be missing, as older files lack them.

    Args:
        model (nn.Module): A backbone, classifier, detector or segmentor.
        weights (Mapping[str, Tensor]): All of its weights.
        path (str): Their file, for the message.

    Raises:
        UserError: If a name is missing or unexpected, or a shape differs. The model may then be loaded in part.
    """
    try:
        missing, extra = model.load_state_dict(dict(weights), strict=False)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except RuntimeError as error:  # torch lists all tensors of another shape, in several lines
        found = re.findall(r'size mismatch for (\S+):', str(error)) or [' '.join(str(error).split())]
        raise UserError(f'{path} does not fit {type(model).__name__} - {_list_misfits(misshaped=found)}') from None
    missing = [name for name in missing if not name.endswith('num_batches_tracked')]
    listed = _list_misfits(missing, extra)
    if listed:
        raise UserError(f'{path} does not fit {type(model).__name__} - {listed}')


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
        map_location (str): Accepted because MMEngine passes it; weights are always read to the CPU and copied.

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
    load_weights(backbone, weights, checkpoint, is_average)


def load_weights(backbone: nn.Module, weights: dict[str, Tensor], path: str, is_average: bool = False) -> None:
    """Loads weights that were read already into a backbone, as :func:`load_pretrained` does.

    Args:
        backbone (EfficientMod): The network.
        weights (dict[str, Tensor]): Its weights in either form, without a prefix.
        path (str): Their file, for the log and the message.
        is_average (bool): Whether they are a moving average, for the log. Defaults to False.

    Raises:
        UserError: If they do not fit. The backbone is left as it is.
    """
    try:
        fit, notes = fit_pretrained(weights, backbone)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    if fit.deploy and not backbone.deploy:
        backbone.switch_to_deploy()
    backbone.load_state_dict(fit.weights)
    message = f'EfficientMod arch {fit.arch!r}: {len(fit.weights)} tensors loaded from {path}, {COPY[is_average]}'
    print_log('; '.join([message, *notes]), logger='current')


def read_pretrained(path: str, ema: bool = False) -> tuple[dict[str, Tensor], bool]:
    """Reads the weights that ``init_cfg`` names, and tells whether they are a moving average.

    Raises as :func:`read_checkpoint` and :func:`find_weights` do.
    """
    try:
        return pick_weights(read_checkpoint(path), path, ema)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: download the authors' file (docs/model-zoo.md has the names) and set it with --cfg-options "
            'model.backbone.init_cfg.checkpoint=PATH, or start without it (from random weights, with load_from or with '
            '--resume) with --cfg-options model.backbone.init_cfg=None'
        ) from None


class Fit(NamedTuple):
    """How the weights of a checkpoint fit a backbone."""

    weights: dict[str, Tensor]  # with the project's names, without those left out
    left_out: list[str]  # the classifier, and stages that the backbone was built without
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]  # each with both shapes
    arch: str
    deploy: bool  # whether they were compared with the deploy form of the backbone

    @property
    def num_loaded(self) -> int:
        return len(self.weights) - len(self.unexpected)

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    @property
    def is_of_training_form(self) -> bool:
        """Whether the weights are in the training form, and the backbone is not."""
        blocks = [name for name in self.weights if name.startswith('stages.')]
        return bool(blocks) and self.deploy and not is_deploy_form(blocks)

    def explain(self) -> UserError:
        """The error that says what does not fit."""
        if not self.num_loaded and any(name.startswith(BACKBONE_PREFIX) for name in self.unexpected):
            return UserError(f'it holds a complete model: add prefix={BACKBONE_PREFIX!r} to the init_cfg that names it')
        if self.is_of_training_form:
            return UserError(
                'this is the training form: remove deploy=True from the backbone and call switch_to_deploy() after '
                'loading'
            )
        listed = _list_misfits(self.missing, self.unexpected, self.misshaped)
        return UserError(f'the checkpoint does not fit EfficientMod arch {self.arch!r} - {listed}')


def fit_weights(weights: Mapping[str, Tensor], backbone: nn.Module, any_form: bool = True) -> Fit:
    """Compares weights with a backbone; neither is changed.

    Args:
        weights (Mapping[str, Tensor]): Weights with released or project names, without a prefix.
        backbone (EfficientMod): The network that they are for.
        any_form (bool): Compare weights in the deploy form with that form of the backbone. Defaults to True.

    Raises:
        UserError: If a parameter is there under both names, or the backbone cannot take the weights' deploy form.
    """
    renamed, left_out = rename_weights(weights, len(backbone.stages))
    if any_form and not backbone.deploy and is_deploy_form(renamed):
        backbone = copy.deepcopy(backbone)
        try:
            backbone.switch_to_deploy()
        except ValueError as error:
            raise UserError(f'this is the deploy form, which the backbone cannot take: {error}') from None
    expected = {name: value for name, value in backbone.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
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
        deploy=backbone.deploy,
    )


def rename_weights(weights: Mapping[str, Tensor], num_stages: int) -> tuple[dict[str, Tensor], list[str]]:
    """Gives weights the project's names, and lists those that a backbone of so many stages leaves out.

    Raises:
        UserError: If a parameter is there under both names.
    """
    renamed: dict[str, Tensor] = {}
    left_out = []
    for name, value in weights.items():
        project_name = to_project_name(name)
        stage = re.match(r'(?:patch_embeds|stages)\.(\d+)\.', project_name)
        if project_name.startswith(('norm.', 'head.')) or (stage and int(stage[1]) >= num_stages):
            left_out.append(project_name)
        elif project_name in renamed:
            raise UserError(f'the checkpoint holds {project_name} under both names')
        else:
            renamed[project_name] = value
    return renamed, left_out


def fit_all(weights: Mapping[str, Tensor], backbone: nn.Module) -> Fit:
    """Compares weights with a backbone; raises UserError unless every name, shape and value fits."""
    fit = fit_weights(weights, backbone)
    if not fit.is_complete:
        raise fit.explain()
    check_values(fit.weights)
    return fit


def fit_some(weights: Mapping[str, Tensor], backbone: nn.Module, prefix: str) -> Fit:
    """Compares weights with a backbone; raises UserError for what would ruin a run, though MMEngine only warns of it.

    MMEngine's ``load_checkpoint`` is the loader of ``load_from``, ``--resume``, tests and inferencers.

    Args:
        weights (Mapping[str, Tensor]): As :func:`fit_weights` takes them.
        backbone (EfficientMod): The network that they are for.
        prefix (str): The prefix of their names in the checkpoint, for the message.

    Raises:
        UserError: If none of the weights fits, a shape differs, a value is unusable, or they are in the training form
            and the backbone is not.
    """
    if not weights:
        raise UserError(
            f'the checkpoint names nothing that starts with {prefix!r}: load the weights of only a backbone with '
            "backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=PATH))"
        )
    fit = fit_weights(weights, backbone)
    if fit.misshaped or not fit.num_loaded or (fit.is_of_training_form and not fit.is_complete):
        raise fit.explain()
    check_values(fit.weights)
    return fit


def fit_pretrained(weights: dict[str, Tensor], backbone: nn.Module) -> tuple[Fit, list[str]]:
    """Fits weights to a backbone for ``init_cfg``: all of them, with the stem adapted to its channels.

    Returns:
        tuple[Fit, list[str]]: The weights, and for the log what was done to them. The backbone is not changed: it must
        be switched to the deploy form before it takes weights in that form.

    Raises:
        UserError: If anything else does not fit.
    """
    notes = []
    stem = next((name for name in weights if to_project_name(name) == STEM), None)
    in_channels = backbone.patch_embeds[0].proj.in_channels
    if stem and in_channels != 3 and weights[stem].shape[1:2] == (3,):
        check_values({STEM: weights[stem]})
        weights = {**weights, stem: adapt_stem(weights[stem], in_channels)}
        notes.append(f'stem adapted from 3 to {in_channels} input channels')
    fit = fit_all(weights, backbone)
    if fit.left_out:
        parts = dict.fromkeys(re.sub(r'^(\w+\.\d+|\w+).*', r'\1', name) for name in fit.left_out)
        notes.append(f'left out: {", ".join(parts)}')
    if fit.deploy:
        notes.append('deploy form, which cannot be trained')
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


def is_from_mmengine(keys: object) -> bool:
    """Whether a ``load_state_dict`` post-hook was called by MMEngine's loader, not by torch's.

    Both pass modules the same arguments, but each passes its post-hooks missing and unexpected keys of a class of its
    own.
    """
    return isinstance(keys, MMEngineKeys)


def _list_misfits(missing: Sequence[str] = (), unexpected: Sequence[str] = (), misshaped: Sequence[str] = ()) -> str:
    kinds = {'missing': missing, 'unexpected': unexpected, 'of another shape': misshaped}
    return '; '.join(f'{len(names)} {kind}: {enumerate_names(names, 3)}' for kind, names in kinds.items() if names)
