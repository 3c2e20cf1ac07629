"""EfficientMod with channels first and its linear layers as 1x1 convolutions, the form of which INT8 files are made.

OpenVINO computes depth-wise convolutions in INT8, and adds a bias within a product of bytes, only where no
transposition lies between the layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deploy import EPS, DeployAttentionBlock, DeployModulationBlock
from .layers import PatchEmbed


class ChannelsFirst(nn.Module):
    """What a deployed EfficientMod computes: images (B, 3, H, W), H and W of 32 or more -> its levels (B, C, h, w)."""

    def __init__(self, backbone: Any) -> None:  # an EfficientMod, which imports this module
        super().__init__()
        self.out_indices = backbone.out_indices
        self.stages = nn.ModuleList(
            nn.Sequential(_Patch(patch), *(_block(block) for block in blocks))
            for patch, blocks in zip(backbone.patch_embeds, backbone.stages)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                levels.append(x)
        return tuple(levels)


def _block(block: nn.Module) -> nn.Module:
    return _Modulation(block) if isinstance(block, DeployModulationBlock) else _Attention(block)


def _conv(linear: nn.Linear) -> nn.Conv2d:
    """A linear layer over the channels as a convolution."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.load_state_dict(dict(weight=linear.weight[..., None, None], bias=linear.bias))
    return conv


class Norm(nn.Module):
    """LayerNorm over the channels (B, C, H, W), without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + EPS)


class _Patch(nn.Module):
    """:class:`PatchEmbed`."""

    def __init__(self, patch: PatchEmbed) -> None:
        super().__init__()
        self.proj, self.norm = patch.proj, Norm()
        self.scale, self.shift = (nn.Parameter(value[:, None, None]) for value in (patch.norm.weight, patch.norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x)) * self.scale + self.shift


class _Modulation(nn.Module):
    """:class:`DeployModulationBlock`."""

    def __init__(self, block: DeployModulationBlock) -> None:
        super().__init__()
        self.ratio, self.norm = block.ratio, Norm()
        self.f, self.g, self.fc1, self.fc2 = map(_conv, (block.context.f, block.context.g, block.fc1, block.fc2))
        self.dwconv = block.context.dwconv

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x)
        value, context = self.fc1(u), self.g(F.gelu(self.dwconv(self.f(u))))
        if self.ratio > 1:
            value = F.gelu(value)
        return x + self.fc2(torch.cat([part * context for part in value.chunk(self.ratio, 1)], 1))


class _Attention(nn.Module):
    """:class:`DeployAttentionBlock`, whose attention itself has channels last."""

    def __init__(self, block: DeployAttentionBlock) -> None:
        super().__init__()
        self.norm, self.attn, self.fc1, self.fc2 = Norm(), block.attn, _conv(block.fc1), _conv(block.fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))
