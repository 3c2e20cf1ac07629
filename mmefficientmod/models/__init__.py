"""The networks that the plugin registers."""

from __future__ import annotations

from ..version import check_dependencies

check_dependencies()

from .ablations import ModulationVariant, SeparateMlpBlock  # noqa: E402
from .baselines import EdgeViT, EfficientFormer, TimmBackbone, TimmLogits  # noqa: E402
from .efficientmod import EfficientMod  # noqa: E402
from .necks import NormPooling  # noqa: E402

__all__ = [
    'EdgeViT',
    'EfficientFormer',
    'EfficientMod',
    'ModulationVariant',
    'NormPooling',
    'SeparateMlpBlock',
    'TimmBackbone',
    'TimmLogits',
]
