"""The networks that the plugin registers."""

from __future__ import annotations

from .ablations import ModulationVariant, SeparateMlpBlock
from .baselines import EdgeViT, EfficientFormer, TimmBackbone
from .efficientmod import EfficientMod
from .necks import NormPooling

__all__ = [
    'EdgeViT',
    'EfficientFormer',
    'EfficientMod',
    'ModulationVariant',
    'NormPooling',
    'SeparateMlpBlock',
    'TimmBackbone',
]
