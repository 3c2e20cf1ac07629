"""The network as the authors released it: what tests of outputs, gradients and memory compare with.

The same sequence of operations as the released code: NHWC activations, a copy at every change of layout, an explicit
repeat, nothing fused. Parameters have the released names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

ARCHS = dict(
    xxs=dict(
        dims=(32, 64, 128, 256), depths=(2, 2, 6, 2), attn=(0, 0, 1, 2), ratio=6, att_ratio=(4, 4, 4, 4), drop_path=0.0
    ),
    xs=dict(
        dims=(32, 64, 144, 288), depths=(3, 3, 4, 2), attn=(0, 0, 3, 3), ratio=4, att_ratio=(4, 4, 4, 4), drop_path=0.0
    ),
    s=dict(
        dims=(32, 64, 144, 312), depths=(4, 4, 8, 4), attn=(0, 0, 4, 4), ratio=6, att_ratio=(4, 4, 4, 5), drop_path=0.02
    ),
    s_conv=dict(
        dims=(40, 80, 160, 344),
        depths=(4, 4, 12, 8),
        attn=(0, 0, 0, 0),
        ratio=6,
        att_ratio=(4, 4, 4, 4),
        drop_path=0.02,
    ),
)


class DropPath(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class PatchEmbed(nn.Module):
    def __init__(self, cin, cout, k, s, p):
        super().__init__()
        self.proj = nn.Conv2d(cin, cout, k, s, p)
        self.norm = nn.LayerNorm(cout)

    def forward(self, x):
        x = self.proj(x.permute(0, 3, 1, 2).contiguous())
        return self.norm(x.permute(0, 2, 3, 1).contiguous())


class Context(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.f = nn.Linear(dim, dim)
        self.g = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.context_list = nn.ModuleList([nn.Conv2d(dim, dim, 7, 1, 3, groups=dim)])

    def forward(self, x):
        x = self.f(x).permute(0, 3, 1, 2).contiguous()
        total = 0
        for conv in self.context_list:
            total = total + self.act(conv(x))
        return self.g(total.permute(0, 2, 3, 1).contiguous())


class ModulationMlp(nn.Module):
    def __init__(self, dim, r):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * r)
        self.context_layer = Context(dim)
        self.fc2 = nn.Linear(dim * r, dim)
        self.r = r

    def forward(self, x):
        ctx = self.context_layer(x)
        v = self.fc1(x)
        v = F.gelu(v) * ctx.repeat(1, 1, 1, self.r) if self.r > 1 else v * ctx
        return self.fc2(v)


class ModBlock(nn.Module):
    def __init__(self, dim, r, drop_path):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = ModulationMlp(dim, r)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = nn.Parameter(1e-4 * torch.ones(dim))

    def forward(self, x):
        return x + self.drop_path(self.gamma_1 * self.mlp(self.norm(x)))


class Attention(nn.Module):
    def __init__(self, dim, heads=8):
        super().__init__()
        self.heads, self.head_dim = heads, max(dim // heads, 32)
        self.qkv = nn.Linear(dim, 3 * heads * self.head_dim, bias=False)
        self.proj = nn.Linear(heads * self.head_dim, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class AttnBlock(nn.Module):
    def __init__(self, dim, ratio, drop_path):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, int(dim * ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x):
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c).contiguous()
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.reshape(b, h, w, c).contiguous()


class Stage(nn.Module):
    def __init__(self, dim, out_dim, depth, attn, ratio, att_ratio, drop_paths):
        super().__init__()
        blocks = [ModBlock(dim, 1 if j % 2 == 0 else ratio, drop_paths[j]) for j in range(depth)]
        blocks += [AttnBlock(dim, att_ratio, drop_paths[depth + j]) for j in range(attn)]
        self.blocks = nn.ModuleList(blocks)
        self.downsample = PatchEmbed(dim, out_dim, 3, 2, 1) if out_dim else None


class ReleasedForm(nn.Module):
    def __init__(self, dims, depths, attn, ratio, att_ratio, drop_path):
        super().__init__()
        rates = torch.linspace(0, drop_path, sum(depths) + sum(attn)).tolist()
        self.patch_embed = PatchEmbed(3, dims[0], 7, 4, 3)
        self.layers = nn.ModuleList()
        for i in range(4):
            n = depths[i] + attn[i]
            out_dim = dims[i + 1] if i < 3 else None
            self.layers.append(Stage(dims[i], out_dim, depths[i], attn[i], ratio, att_ratio[i], rates[:n]))
            rates = rates[n:]

    def forward(self, x):
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        pyramid = []
        for stage in self.layers:
            for block in stage.blocks:
                x = block(x)
            pyramid.append(x.permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(pyramid)


def build(arch):
    """The pyramid network of one of ``ARCHS``, randomly initialised by PyTorch's defaults."""
    return ReleasedForm(**ARCHS[arch])
