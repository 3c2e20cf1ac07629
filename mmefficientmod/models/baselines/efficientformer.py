"""EfficientFormer and EfficientFormerV2 for images of any size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...registry import MODELS
from .timm_backbone import TimmBackbone


@MODELS.register_module()
class EfficientFormer(TimmBackbone):
    """EfficientFormer (NeurIPS 2022) and EfficientFormerV2 (ICCV 2023) with attention biases for any image size.

    Both learn one attention bias per pair of positions, for the one image size they are built for. As in their authors'
    dense-prediction code, the biases belong to square images of ``img_size`` pixels, start from zero unless that is the
    size of the pretrained weights, and are interpolated bicubically to the positions of the actual image.

    Args:
        model_name (str): timm's name, e.g. ``'efficientformer_l1'`` or ``'efficientformerv2_s2'``.
        img_size (int): Side of the square image that the biases are kept for, in pixels, a multiple of 32: best the
            training size, or its shorter side. Defaults to 224, the size of the published weights.
        **kwargs: As :class:`TimmBackbone` takes them.

    Raises:
        ValueError: If ``img_size`` is not a multiple of 32.
    """

    def __init__(self, model_name: str, img_size: int = 224, **kwargs: Any) -> None:
        if img_size % 32:
            raise ValueError(f'img_size must be a multiple of 32, got {img_size}')
        super().__init__(model_name, **kwargs)
        from .attention_bias import fit_attention

        fit_attention(self.model, img_size)

    def load_pretrained(self, weights: dict[str, Tensor]) -> None:
        """Loads weights named as in ``self.model``; biases of another image size stay at zero."""
        own = self.model.state_dict()
        for name in [name for name in weights if 'attention_bias' in name and weights[name].shape != own[name].shape]:
            weights[name] = own[name]
        super().load_pretrained(weights)
