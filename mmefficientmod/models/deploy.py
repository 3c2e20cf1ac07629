"""The deploy form of trained blocks: norms' affines and LayerScales folded into the linear layers next to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, AttentionBlock, ContextBranch, ModulationBlock, has_plain_settings, is_bare
from .pointwise import Pointwise, gelu_epilogue, shortcut_epilogue


class DeployModulationBlock(nn.Module):
    """:class:`ModulationBlock` without parameters of its norm and without ``gamma``; the same result."""

    def __init__(self, embed_dims: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.context = ContextBranch(embed_dims)
        self.fc1 = Pointwise(embed_dims, ratio * embed_dims)
        self.fc2 = Pointwise(ratio * embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        u = F.layer_norm(x, x.shape[-1:])
        value, context = self.fc1(u), self.context(u)
        if self.ratio > 1:
            value = gelu_epilogue(value)
        value = (value.unflatten(-1, (self.ratio, -1)) * context.unsqueeze(-2)).flatten(-2)
        return shortcut_epilogue(self.fc2(value), x)

    @classmethod
    @torch.no_grad()
    def fold(cls, block: ModulationBlock) -> DeployModulationBlock:
        """The deploy form of a trained block."""
        dims = block.gamma.numel()
        deployed = cls(dims, block.fc1.out_features // dims).to(block.gamma)
        deployed.context.load_state_dict(block.context.state_dict())
        deployed.context.f = _fold_norm(block.norm, block.context.f)
        deployed.fc1 = _fold_norm(block.norm, block.fc1)
        deployed.fc2.weight.copy_(block.gamma[:, None] * block.fc2.weight)
        deployed.fc2.bias.copy_(block.gamma * block.fc2.bias)
        return deployed


class DeployAttentionBlock(nn.Module):
    """:class:`AttentionBlock` without parameters of its norms; the same result."""

    def __init__(self, embed_dims: int, hidden_dims: int, max_keys: int | None = None) -> None:
        super().__init__()
        self.attn = Attention(embed_dims, qkv_bias=True, max_keys=max_keys)
        self.fc1 = Pointwise(embed_dims, hidden_dims)
        self.fc2 = Pointwise(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        x = shortcut_epilogue(self.attn(F.layer_norm(x, x.shape[-1:])), x)
        return shortcut_epilogue(self.fc2(gelu_epilogue(self.fc1(F.layer_norm(x, x.shape[-1:])))), x)

    @classmethod
    @torch.no_grad()
    def fold(cls, block: AttentionBlock) -> DeployAttentionBlock:
        """The deploy form of a trained block."""
        dims = block.fc1.in_features, block.fc1.out_features
        deployed = cls(*dims, block.attn.max_keys).to(block.fc1.weight)
        deployed.attn.qkv = _fold_norm(block.norm1, block.attn.qkv)
        deployed.attn.proj.load_state_dict(block.attn.proj.state_dict())
        deployed.fc1 = _fold_norm(block.norm2, block.fc1)
        deployed.fc2.load_state_dict(block.fc2.state_dict())
        return deployed


DEPLOY_FORM: dict[type, type[DeployModulationBlock] | type[DeployAttentionBlock]] = {
    ModulationBlock: DeployModulationBlock,
    AttentionBlock: DeployAttentionBlock,
}
EPS = 1e-5  # of F.layer_norm
KERNEL = 7, 7
FOLDABLE = nn.LayerNorm, nn.Conv2d, Pointwise, ContextBranch, Attention


def fold_blocks(stages: nn.ModuleList) -> None:
    """Puts the deploy form of every block in its place; a block in that form stays as it is.

    Raises:
        ValueError: If a block or a part of one is wrapped, parametrised, pruned, hooked or has other settings than
            the network's, which folding would lose.
    """
    for name, module in stages.named_modules():
        kinds = (nn.ModuleList, *DEPLOY_FORM, *DEPLOY_FORM.values(), *FOLDABLE)
        if not any(is_bare(module, kind) for kind in kinds):
            raise ValueError(
                f'stages.{name} ({type(module).__name__}) is wrapped, parametrised, pruned or carries a hook: merge or '
                'remove that before switch_to_deploy()'
            )
        if isinstance(module, nn.LayerNorm):
            plain = module.eps == EPS and module.weight is not None and module.bias is not None
        else:
            plain = not isinstance(module, nn.Conv2d) or (has_plain_settings(module) and module.kernel_size == KERNEL)
        if not plain:
            raise ValueError(f'stages.{name} ({module}) has settings of its own, which the deploy form does not know')
    for blocks in stages:
        for i, block in enumerate(blocks):
            if type(block) in DEPLOY_FORM:
                blocks[i] = DEPLOY_FORM[type(block)].fold(block).train(block.training)


def _fold_norm(norm: nn.LayerNorm, linear: Pointwise) -> Pointwise:
    """Folds the norm's affine into ``linear``, which then follows a norm without one."""
    folded = Pointwise(linear.in_features, linear.out_features).to(linear.weight)
    folded.weight.copy_(linear.weight * norm.weight)
    bias = linear.weight @ norm.bias
    folded.bias.copy_(bias if linear.bias is None else bias + linear.bias)
    return folded
