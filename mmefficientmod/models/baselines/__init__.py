"""Comparison backbones that no MM library offers in this form. Importing needs no timm, building most does."""

from __future__ import annotations

from .edgevit import EdgeViT
from .efficientformer import EfficientFormer
from .timm_backbone import TimmBackbone
from .timm_logits import TimmLogits

__all__ = ['EdgeViT', 'EfficientFormer', 'TimmBackbone', 'TimmLogits']
