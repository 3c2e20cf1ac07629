"""EfficientMod as its authors' code runs it: the reference that speed-ups refer to."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..models import EfficientMod
from ..models.compat import gelu
from ..models.layers import AttentionBlock, ContextBranch, ModulationBlock, PatchEmbed, drop_path


class Reference(nn.Module):
    """The authors' sequence of operations with the weights of an EfficientMod.

    NHWC activations, a copy at each change of the layout, the context repeated to the width of the value, one operation
    after the other. The parameters are shared with the given model.

    Args:
        model (EfficientMod): The network, not in its deploy form.
    """

    def __init__(self, model: EfficientMod) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> one contiguous map per stage."""
        x = images.permute(0, 2, 3, 1)
        levels = []
        for patch_embed, blocks in zip(self.model.patch_embeds, self.model.stages):
            x = self.embed(patch_embed, x)
            for block in blocks:
                x = self.modulate(block, x) if isinstance(block, ModulationBlock) else self.attend(block, x)
            levels.append(x.permute(0, 3, 1, 2).contiguous())
        return tuple(levels)

    def embed(self, layer: PatchEmbed, x: Tensor) -> Tensor:
        x = layer.proj(x.permute(0, 3, 1, 2).contiguous())
        return layer.norm(x.permute(0, 2, 3, 1).contiguous())

    def context(self, branch: ContextBranch, x: Tensor) -> Tensor:
        x = linear(branch.f, x).permute(0, 3, 1, 2).contiguous()
        x = 0 + gelu(branch.dwconv(x))  # the sum over a list of one convolution
        return linear(branch.g, x.permute(0, 2, 3, 1).contiguous())

    def modulate(self, block: ModulationBlock, x: Tensor) -> Tensor:
        u = block.norm(x)
        context = self.context(block.context, u)
        value = linear(block.fc1, u)
        ratio = value.shape[-1] // x.shape[-1]
        value = gelu(value) * context.repeat(1, 1, 1, ratio) if ratio > 1 else value * context
        return x + drop_path(block.gamma * linear(block.fc2, value), block.drop_path_rate, self.training)

    def attend(self, block: AttentionBlock, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c).contiguous()
        qkv = linear(block.attn.qkv, block.norm1(x)).reshape(b, h * w, 3, block.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, -1)
        x = x + drop_path(linear(block.attn.proj, y), block.drop_path_rate, self.training)
        y = linear(block.fc2, gelu(linear(block.fc1, block.norm2(x))))
        x = x + drop_path(y, block.drop_path_rate, self.training)
        return x.reshape(b, h, w, c).contiguous()


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``F.linear`` in place of the layer's forward."""
    return F.linear(x, layer.weight, layer.bias)
