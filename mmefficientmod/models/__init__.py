"""The networks that the plugin registers."""

from __future__ import annotations

from .baselines import EdgeViT, EfficientFormer, TimmBackbone
from .efficientmod import EfficientMod

__all__ = ['EdgeViT', 'EfficientFormer', 'EfficientMod', 'TimmBackbone']
