"""Comparison backbones that no MM library offers for dense prediction. Importing needs no timm, building most does."""

from __future__ import annotations

from .edgevit import EdgeViT
from .efficientformer import EfficientFormer
from .timm_backbone import TimmBackbone

__all__ = ['EdgeViT', 'EfficientFormer', 'TimmBackbone']
