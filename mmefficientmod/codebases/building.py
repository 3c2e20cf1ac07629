"""Builds models of the MM libraries, and checks the device that they run on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..utils import UserError, first_line


def check_device(name: str | None) -> torch.device:
    """The device that ``--device`` names, after a tensor was made and read there.

    Args:
        name (str, optional): For example ``'cpu'`` or ``'cuda:0'``; None for the best one available.

    Raises:
        UserError: If no device has that name, or it cannot be used.
    """
    name = name or get_device()
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise UserError(f'--device {name} is not the name of a device: give cpu or cuda:0, for example') from None
    try:
        value = torch.zeros(1, device=device)
        value.item()  # the meta device has none
    except Exception as error:  # each backend of torch has its own
        reason = first_line(error).partition('. ')[0]  # some list every backend after it
        raise UserError(f'--device {name} is not available ({reason}): use --device cpu') from error
    return value.device


def build_quietly(settings: Mapping, scope: str | None = None) -> nn.Module:
    """Builds a model in evaluation mode, without the warnings of the libraries.

    Args:
        settings (Mapping): The model's dict in a config.
        scope (str, optional): The codebase in which its parts are found. Defaults to None: their names tell.
    """
    if scope == 'mmpretrain':
        settings = dict(settings, train_cfg=None)  # mixup and CutMix, which announce themselves
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = revert_sync_batchnorm(MODELS.build(settings))
    model.eval()  # some backbones return nothing here
    return model
