"""Levels of a detector: the heads read the maps that they are made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ...utils import UserError, quiet

SIDE = 256  # of the image, in pixels: a multiple of the strides of all usual levels
TOLERANCE = 0.1  # some heads have strides such as 7.97


def check_levels(model: nn.Module) -> None:
    """Refuses a detector whose heads read the levels as if they had other strides than they have.

    MMDetection pairs levels and strides one by one and passes over what is left: RTMDet trains on strides 4, 8 and 16
    as if they were 8, 16 and 32, without an error. Models that take no plain image, and heads without strides, are
    not judged.

    Args:
        model (nn.Module): As the runner trains it. It runs once, in evaluation mode, on a black image.

    Raises:
        UserError: With the strides of both.
    """
    model = getattr(model, 'module', model)
    heads = list(_heads(model))
    found = [SIDE / level.shape[-1] for level in _levels(model)] if heads else []
    for name, strides, reads_all in heads:
        fits = len(found) == len(strides) if reads_all else len(found) >= len(strides)
        if found and not (fits and abs(found[0] / strides[0] - 1) <= TOLERANCE):
            raise UserError(
                f'model.{name} reads levels of strides {_list(strides)}, and the neck gives strides {_list(found)}: '
                "set model.backbone.out_indices, and the neck's in_channels, to the stages of these strides; stages 0 "
                "to 3 of this package's backbones have 4, 8, 16, 32"
            )


def _heads(model: nn.Module) -> Iterator[tuple[str, list[float], bool]]:
    """Parts of MMDetection that read levels by their strides in pixels, and whether they read all levels."""
    for name, strides, reads_all in (
        ('bbox_head', 'prior_generator.strides', True),
        ('rpn_head', 'prior_generator.strides', True),
        ('roi_head.bbox_roi_extractor', 'featmap_strides', False),
    ):
        part = reduce(lambda each, attribute: getattr(each, attribute, None), name.split('.'), model)
        part = part[0] if isinstance(part, nn.ModuleList) else part
        given = reduce(lambda each, attribute: getattr(each, attribute, None), strides.split('.'), part)
        if type(part).__module__.startswith('mmdet.') and isinstance(given, Sequence) and given:
            yield name, [float(each[0] if isinstance(each, Sequence) else each) for each in given], reads_all


def _levels(model: Any) -> Sequence[Tensor]:
    """The maps of the neck; none where the model cannot be asked."""
    modes = {module: module.training for module in model.modules()}
    try:
        parameter = next(model.parameters())
        model.eval()
        with torch.no_grad(), quiet():
            levels = model.extract_feat(torch.zeros(1, 3, SIDE, SIDE, dtype=parameter.dtype, device=parameter.device))
        maps = isinstance(levels, (list, tuple)) and all(isinstance(level, Tensor) for level in levels)
        return levels if maps else ()
    except Exception:  # it takes something else, or its parts are divided among processes
        return ()
    finally:
        for module, mode in modes.items():
            module.training = mode


def _list(strides: Sequence[float]) -> str:
    return ', '.join(f'{stride:g}' for stride in strides)
