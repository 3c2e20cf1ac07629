"""Builds models of the MM libraries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn


def build_quietly(settings: Mapping, scope: str | None = None) -> nn.Module:
    """A model in evaluation mode, without what the libraries warn of while they build it.

    Args:
        settings (Mapping): The model's dict in a config.
        scope (str, optional): The codebase in which its parts are found. Defaults to none: their names tell.
    """
    if scope == 'mmpretrain':
        settings = dict(settings, train_cfg=None)  # mixup and CutMix, which announce themselves
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = revert_sync_batchnorm(MODELS.build(settings))
    model.eval()  # some backbones return nothing here
    return model
