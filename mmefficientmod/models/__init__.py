"""The networks that the plugin registers."""

from __future__ import annotations

from .. import check_dependencies

check_dependencies()

from .baselines import EdgeViT, EfficientFormer, TimmBackbone  # noqa: E402
from .efficientmod import EfficientMod  # noqa: E402

__all__ = ['EdgeViT', 'EfficientFormer', 'EfficientMod', 'TimmBackbone']
