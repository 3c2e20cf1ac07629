"""The building blocks of EfficientMod. Activations are NHWC throughout: (B, H, W, C)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module

from .compat import gelu
from .depthwise import from_conv, to_conv
from .modulation import modulation, product
from .pointwise import Pointwise

# torch's registries of hooks that fire for every module.
_GLOBAL_HOOKS = (
    module._global_forward_hooks,
    module._global_forward_pre_hooks,
    module._global_backward_hooks,
    module._global_backward_pre_hooks,
)
_HOOKS = '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks'


def is_bare(module: nn.Module, kind: type) -> bool:
    """Whether a module is of exactly this class and carries no hook, so that only its parameters matter.

    A parametrisation, LoRA or fake quantisation changes the class; pruning adds a hook.
    """
    return (
        type(module) is kind and 'forward' not in module.__dict__ and not any(getattr(module, name) for name in _HOOKS)
    )


def has_plain_settings(conv: nn.Conv2d) -> bool:
    """Whether a depth-wise convolution does what that of :class:`ContextBranch` does, up to the size of its kernel."""
    settings = conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.groups
    return settings == ((1, 1), tuple(side // 2 for side in conv.kernel_size), (1, 1), 'zeros', conv.in_channels)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: zeroes whole samples of ``x`` (B, ...) with probability ``rate`` and rescales the others."""
    if not training or rate == 0:
        return x
    keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - rate)
    return x * keep.div_(1 - rate)


class PatchEmbed(nn.Module):
    """Strided convolution, then LayerNorm: (B, H, W, in) -> (B, ceil(H / stride), ceil(W / stride), out)."""

    def __init__(self, in_channels: int, embed_dims: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.permute(0, 3, 1, 2))  # a channels-last view, so the convolution needs no copy
        return self.norm(x.permute(0, 2, 3, 1))


class ToNCHW(nn.Module):
    """Turns the output of a stage into a level: (B, H, W, C) -> (B, C, H, W), a copy or a channels-last view.

    A module, so that hooks and activation maps can name a level.
    """

    def __init__(self, copy: bool) -> None:
        super().__init__()
        self.copy = copy

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return x.contiguous() if self.copy else x


class ContextBranch(nn.Module):
    """What surrounds each pixel: g(GELU(DWConv7x7(f(x)))), (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, embed_dims: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.f = Pointwise(embed_dims, embed_dims)
        self.dwconv = nn.Conv2d(embed_dims, embed_dims, kernel_size, 1, kernel_size // 2, groups=embed_dims)
        self.g = Pointwise(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(from_conv(gelu(self.dwconv(to_conv(self.f(x))))))


class ModulationBlock(nn.Module):
    """x + gamma * fc2(v * context(u)) with u = LayerNorm(x) and the value v = GELU(fc1(u)), ``ratio`` times wider.

    The context (B, H, W, C) meets each of the value's ``ratio`` parts of C channels. At ``ratio`` 1, v = fc1(u).
    (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, embed_dims: int, ratio: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm = nn.LayerNorm(embed_dims)
        self.context = ContextBranch(embed_dims)
        self.fc1 = Pointwise(embed_dims, ratio * embed_dims)
        self.fc2 = Pointwise(ratio * embed_dims, embed_dims)
        self.gamma = nn.Parameter(torch.full((embed_dims,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self._parts_are_bare():
            y = modulation(x, self.norm, self.context, self.fc1, self.fc2, self.gamma)
        else:  # the same part by part, as hooks, wrappers, counters and exports expect it
            u = self.norm(x)
            y = self.gamma * self.fc2(product(self.fc1(u), self.context(u)))
        return x + drop_path(y, self.drop_path_rate, self.training)

    def _parts_are_bare(self) -> bool:
        """Whether one operator may stand in for the parts: none is wrapped, parametrised, hooked or replaced."""
        if any(_GLOBAL_HOOKS) or not is_bare(self.context, ContextBranch):
            return False
        linear = self.fc1, self.fc2, self.context.f, self.context.g
        norm, conv = self.norm, self.context.dwconv
        return (
            all(is_bare(part, Pointwise) for part in linear)
            and is_bare(norm, nn.LayerNorm)
            and is_bare(conv, nn.Conv2d)
            and has_plain_settings(conv)
            and all(part.weight is not None and part.bias is not None for part in (*linear, norm, conv))
        )


class Attention(nn.Module):
    """Multi-head self-attention over all pixels; a head is at least 32 wide. (B, H, W, C) -> (B, H, W, C).

    Where there are more than ``max_keys`` pixels, keys and values are averaged over square windows until there are not.
    """

    def __init__(
        self, embed_dims: int, num_heads: int = 8, qkv_bias: bool = False, max_keys: int | None = None
    ) -> None:
        super().__init__()
        self.max_keys = max_keys
        self.num_heads = num_heads
        self.head_dims = max(embed_dims // num_heads, 32)
        self.qkv = Pointwise(embed_dims, 3 * num_heads * self.head_dims, bias=qkv_bias)
        self.proj = Pointwise(num_heads * self.head_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        width = self.num_heads * self.head_dims
        q, kv = self.qkv(x).split([width, 2 * width], -1)
        if self.max_keys and h * w > self.max_keys:
            kv = average_windows(kv, self.max_keys)
        q = q.unflatten(-1, (self.num_heads, -1)).flatten(1, 2).transpose(1, 2)  # (B, heads, HW, head_dims)
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)  # fewer pixels
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, h, w, width))  # named: -1 fails on an empty batch


def average_windows(x: Tensor, max_pixels: int) -> Tensor:
    """Averages (B, H, W, C) over the smallest square windows that leave at most ``max_pixels`` pixels."""
    h, w = x.shape[1:3]
    side = next(n for n in range(2, max(h, w) + 1) if math.ceil(h / n) * math.ceil(w / n) <= max_pixels)
    x = F.avg_pool2d(x.permute(0, 3, 1, 2), side, ceil_mode=True, count_include_pad=False)
    return x.permute(0, 2, 3, 1)


class AttentionBlock(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer MLP, each with a shortcut. No LayerScale."""

    def __init__(self, embed_dims: int, ratio: float, drop_path_rate: float = 0.0, max_keys: int | None = None) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = Attention(embed_dims, max_keys=max_keys)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.fc1 = Pointwise(embed_dims, int(ratio * embed_dims))
        self.fc2 = Pointwise(int(ratio * embed_dims), embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        x = x + drop_path(self.attn(self.norm1(x)), self.drop_path_rate, self.training)
        x_mlp = self.fc2(gelu(self.fc1(self.norm2(x))))
        return x + drop_path(x_mlp, self.drop_path_rate, self.training)
