"""timm's attention of EfficientFormer and EfficientFormerV2, with biases that follow the image size. Needs timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models import efficientformer, efficientformer_v2
from torch import Tensor, nn


class _InterpolatedBias:
    """Interpolates the biases (heads, queries, keys) to the positions of the actual map as timm asks for them."""

    attention_biases: Tensor
    attention_bias_idxs: Tensor
    num_positions: tuple[int, int]  # queries, keys of the current map

    def get_attention_biases(self, device: torch.device) -> Tensor:
        bias = self.attention_biases[:, self.attention_bias_idxs]
        if bias.shape[1:] != self.num_positions:
            bias = F.interpolate(bias[None], self.num_positions, mode='bicubic')[0]
        return bias


class Attention(_InterpolatedBias, efficientformer.Attention):
    """EfficientFormer's attention: (B, N, C) -> (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_positions = (x.shape[1], x.shape[1])
        return super().forward(x)


class Attention2d(_InterpolatedBias, efficientformer_v2.Attention2d):
    """EfficientFormerV2's attention, at half resolution in stage 3: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        stride = 1 if self.stride_conv is None else 2
        self.resolution = tuple(side // stride for side in x.shape[-2:])
        self.N = self.resolution[0] * self.resolution[1]
        self.num_positions = (self.N, self.N)
        return super().forward(x)


class Attention2dDownsample(_InterpolatedBias, efficientformer_v2.Attention2dDownsample):
    """EfficientFormerV2's down-sampling attention: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        self.resolution = tuple(x.shape[-2:])
        self.resolution2 = tuple(side // 2 for side in self.resolution)
        self.N = self.resolution[0] * self.resolution[1]
        self.N2 = self.resolution2[0] * self.resolution2[1]
        self.num_positions = (self.N2, self.N)
        return super().forward(x)


FITTED = {
    efficientformer.Attention: Attention,
    efficientformer_v2.Attention2d: Attention2d,
    efficientformer_v2.Attention2dDownsample: Attention2dDownsample,
}


def fit_attention(model: nn.Module, img_size: int, built_size: int = 224) -> None:
    """Lets every attention of a timm EfficientFormer take maps of any size.

    Args:
        model (nn.Module): The model, as timm builds it for ``built_size``.
        img_size (int): Side of the square image that the biases are kept for, in pixels.
        built_size (int): The side that timm built them for. Defaults to 224.
    """
    for module in model.modules():
        if type(module) not in FITTED:
            continue
        if img_size != built_size:
            side = round(module.attention_bias_idxs.shape[1] ** 0.5) * img_size // built_size
            reference = type(module)(dim=8, key_dim=1, num_heads=module.num_heads, attn_ratio=1, resolution=side)
            module.attention_biases = reference.attention_biases
            module.attention_bias_idxs = reference.attention_bias_idxs
        # Names and weights stay: only the behaviour changes, the way torch.nn.utils.parametrize changes a module's.
        module.__class__ = FITTED[type(module)]
