"""EdgeViT as a pyramid backbone: no MM library and no version of timm has it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ..layers import drop_path

MLP_RATIO = 4


class PatchEmbed(nn.Module):
    """Convolution of patches side by side, then LayerNorm: (B, C, H, W) -> (B, out, ceil(H / size), ceil(W / size))."""

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.proj(F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size)))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LocalBlock(nn.Module):
    """Gathers what surrounds each position by a depth-wise convolution, then an MLP: (B, C, H, W) -> the same."""

    def __init__(self, embed_dims: int, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.position = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
        self.aggregate = nn.Sequential(
            nn.BatchNorm2d(embed_dims),
            nn.Conv2d(embed_dims, embed_dims, 1),
            nn.Conv2d(embed_dims, embed_dims, 5, padding=2, groups=embed_dims),
            nn.Conv2d(embed_dims, embed_dims, 1),
        )
        self.mlp = nn.Sequential(
            nn.BatchNorm2d(embed_dims),
            nn.Conv2d(embed_dims, MLP_RATIO * embed_dims, 1),
            nn.GELU(),
            nn.Conv2d(MLP_RATIO * embed_dims, embed_dims, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x + drop_path(self.aggregate(x), self.drop_path_rate, self.training)
        return x + drop_path(self.mlp(x), self.drop_path_rate, self.training)


class SparseAttention(nn.Module):
    """Attention among one position of every window, spread back over its window: (B, H, W, C) -> the same."""

    def __init__(self, embed_dims: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        if window > 1:
            self.propagate = nn.ConvTranspose2d(embed_dims, embed_dims, window, window, groups=embed_dims)
            self.norm = nn.LayerNorm(embed_dims, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dims = x.shape
        x = x[:, :: self.window, :: self.window]
        rows, columns = x.shape[1:3]
        qkv = self.qkv(x).view(batch, rows * columns, 3, self.num_heads, dims // self.num_heads)
        x = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x.transpose(1, 2).reshape(batch, rows, columns, dims)
        if self.window > 1:
            x = self.propagate(x.permute(0, 3, 1, 2))[..., :height, :width]  # the last windows may reach over the edge
            x = self.norm(x.permute(0, 2, 3, 1))
        return self.proj(x)


class GlobalBlock(nn.Module):
    """Sparse attention over the whole map, then an MLP: (B, C, H, W) -> the same."""

    def __init__(self, embed_dims: int, num_heads: int, window: int, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.position = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
        self.attention = nn.Sequential(
            nn.LayerNorm(embed_dims, eps=1e-6), SparseAttention(embed_dims, num_heads, window)
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(embed_dims, eps=1e-6),
            nn.Linear(embed_dims, MLP_RATIO * embed_dims),
            nn.GELU(),
            nn.Linear(MLP_RATIO * embed_dims, embed_dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x.permute(0, 2, 3, 1)
        x = x + drop_path(self.attention(x), self.drop_path_rate, self.training)
        x = x + drop_path(self.mlp(x), self.drop_path_rate, self.training)
        return x.permute(0, 3, 1, 2)


@MODELS.register_module()
class EdgeViT(BaseModule):
    """EdgeViT: local aggregation, global sparse attention and local propagation take turns.

    Implements the backbone of `EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers
    <https://arxiv.org/abs/2205.03436>`_ (ECCV 2022). The maps come as each stage leaves them, without a norm.

    Args:
        arch (str): ``'xxs'``, ``'xs'`` or ``'s'``. Defaults to ``'s'``.
        in_channels (int): Channels of the input image. Defaults to 3.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
            Defaults to 0.
        init_cfg (dict | list[dict], optional): Initialisation. Defaults to the released one.

    Attributes:
        out_channels (tuple[int]): Channels of the four maps.
        out_strides (tuple[int]): Their strides in pixels: 4, 8, 16, 32.

    Raises:
        ValueError: If ``arch`` is not one of the above.
    """

    arch_settings: dict[str, dict[str, Any]] = {
        'xxs': dict(embed_dims=(36, 72, 144, 288), depths=(1, 1, 3, 2), head_dims=36),
        'xs': dict(embed_dims=(48, 96, 240, 384), depths=(1, 1, 3, 1), head_dims=48),
        's': dict(embed_dims=(48, 96, 240, 384), depths=(1, 2, 5, 3), head_dims=48),
    }
    windows = (4, 2, 2, 1)  # side of the windows of each stage; a stage without windows has no local aggregation either

    def __init__(
        self, arch: str = 's', in_channels: int = 3, drop_path_rate: float = 0.0, init_cfg: dict | list | None = None
    ) -> None:
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0))
        if arch not in self.arch_settings:
            raise ValueError(f'unknown arch {arch!r}: choose one of {", ".join(self.arch_settings)}')
        embed_dims, depths, head_dims = self.arch_settings[arch].values()
        self.out_channels = embed_dims
        self.out_strides = (4, 8, 16, 32)

        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.stages = nn.ModuleList()
        for i, (dims, depth, window) in enumerate(zip(embed_dims, depths, self.windows)):
            layers = [PatchEmbed(embed_dims[i - 1], dims, 2) if i else PatchEmbed(in_channels, dims, 4)]
            for _ in range(depth):
                rate = next(rates)
                if window > 1:
                    layers.append(LocalBlock(dims, rate))
                layers.append(GlobalBlock(dims, dims // head_dims, window, rate))
            self.stages.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the pyramid.

        Args:
            x (Tensor): Images (B, in_channels, H, W).

        Returns:
            tuple[Tensor]: Four maps (B, C, H', W'), each side half of the one before, rounded up.
        """
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.contiguous())  # as MMCV's operators read them
        return tuple(maps)
