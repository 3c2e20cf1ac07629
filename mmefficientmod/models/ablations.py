"""Variants of the modulation block, for the paper's ablations: an arch dict names one as its ``block``.

None of them has a deploy form or a fused training operator. Activations are NHWC: (B, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..registry import MODELS
from .compat import gelu
from .depthwise import from_conv, to_conv
from .layers import ModulationBlock, drop_path
from .modulation import product
from .pointwise import Pointwise

PARTS = 'f', 'conv', 'g'


class ContextVariant(nn.Module):
    """The context branch with some of its parts, or with several convolutions side by side.

    All of it is g(sum over k of GELU(DWConv_k(f(x)))), (B, H, W, C) -> (B, H, W, C). A part that is left out passes its
    input on; GELU belongs to the convolutions.
    """

    def __init__(self, embed_dims: int, parts: Sequence[str], kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        self.f = Pointwise(embed_dims, embed_dims) if 'f' in parts else nn.Identity()
        self.dwconvs = nn.ModuleList(
            nn.Conv2d(embed_dims, embed_dims, size, padding=size // 2, groups=embed_dims)
            for size in kernel_sizes
            if 'conv' in parts
        )
        self.g = Pointwise(embed_dims, embed_dims) if 'g' in parts else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(x)
        if self.dwconvs:
            x = to_conv(x)
            x = from_conv(torch.stack([gelu(conv(x)) for conv in self.dwconvs]).sum(0))
        return self.g(x)


@MODELS.register_module()
class ModulationVariant(nn.Module):
    """:class:`ModulationBlock <mmefficientmod.models.layers.ModulationBlock>` with another context or interaction.

    Args:
        embed_dims (int): Channels C.
        ratio (int): Widening of the value branch.
        drop_path_rate (float): Stochastic depth. Defaults to 0.
        parts (Sequence[str]): What the context branch keeps of ``'f'``, ``'conv'`` and ``'g'`` (the paper's Table 5).
            Defaults to all.
        kernel_sizes (Sequence[int]): Depth-wise convolutions side by side, their activations summed, as in the released
            code (Appendix L). Defaults to ``(7, )``.
        operator (str): ``'product'`` of value and context, or their ``'sum'`` (Table 5). Defaults to ``'product'``.

    Raises:
        ValueError: If an argument is none of the values above.
    """

    def __init__(
        self,
        embed_dims: int,
        ratio: int,
        drop_path_rate: float = 0.0,
        parts: Sequence[str] = PARTS,
        kernel_sizes: Sequence[int] = (7,),
        operator: str = 'product',
    ) -> None:
        super().__init__()
        if not parts or not set(parts) <= set(PARTS):
            raise ValueError(f'parts must be some of {", ".join(PARTS)}, got {parts}')
        if not kernel_sizes or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f'kernel_sizes must be odd numbers, got {kernel_sizes}')
        if operator not in ('product', 'sum'):
            raise ValueError(f"operator must be 'product' or 'sum', got {operator!r}")
        self.drop_path_rate = drop_path_rate
        self.operator = operator
        self.norm = nn.LayerNorm(embed_dims)
        self.context = ContextVariant(embed_dims, parts, kernel_sizes)
        self.fc1 = Pointwise(embed_dims, ratio * embed_dims)
        self.fc2 = Pointwise(ratio * embed_dims, embed_dims)
        self.gamma = nn.Parameter(torch.full((embed_dims,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x)
        value, context = self.fc1(u), self.context(u)
        if self.operator == 'product':
            y = product(value, context)
        else:
            ratio = value.shape[-1] // context.shape[-1]
            value = gelu(value) if ratio > 1 else value
            y = (value.unflatten(-1, (ratio, -1)) + context.unsqueeze(-2)).flatten(-2)
        return x + drop_path(self.gamma * self.fc2(y), self.drop_path_rate, self.training)


class Mlp(nn.Module):
    """gamma * fc2(GELU(fc1(LayerNorm(x)))), (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dims)
        self.fc1 = Pointwise(embed_dims, hidden_dims)
        self.fc2 = Pointwise(hidden_dims, embed_dims)
        self.gamma = nn.Parameter(torch.full((embed_dims,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.fc2(gelu(self.fc1(self.norm(x))))


@MODELS.register_module()
class SeparateMlpBlock(nn.Module):
    """A modulation block of ratio 1, then a two-layer MLP with its own norm and LayerScale (Appendix L).

    The MLP is ``ratio - 1`` times wider than C, so that the block has the parameters of a fused one of that ratio. At
    ratio 1 there is none. The paper prints only the totals, which these settings meet.
    """

    def __init__(self, embed_dims: int, ratio: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.modulation = ModulationBlock(embed_dims, 1, drop_path_rate)
        self.mlp = Mlp(embed_dims, (ratio - 1) * embed_dims) if ratio > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.modulation(x)
        return x if self.mlp is None else x + drop_path(self.mlp(x), self.drop_path_rate, self.training)
