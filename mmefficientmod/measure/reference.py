"""The forms of EfficientMod whose speed is compared: plain, training, inference; their outputs, work and memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config as inductor

from ..models import EfficientMod
from ..models.layers import AttentionBlock, ContextBranch, ModulationBlock, PatchEmbed, drop_path

FORMS = ('plain', 'training form', 'deploy', 'deploy, compiled', 'bf16, compiled')
TOLERANCE = {form: 2e-2 if form.startswith('bf16') else 1e-5 for form in FORMS}


class PlainForm(nn.Module):
    """An EfficientMod in training form, run as the authors' code runs it: the yardstick that ratios refer to.

    NHWC activations, a copy wherever the layout changes, the context repeated to the value's width, one operation after
    the other. The parameters are those of the given model, not copies.

    Args:
        model (EfficientMod): The network.
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
        x = 0 + F.gelu(branch.dwconv(x))  # the sum over a list of one convolution
        return linear(branch.g, x.permute(0, 2, 3, 1).contiguous())

    def modulate(self, block: ModulationBlock, x: Tensor) -> Tensor:
        u = block.norm(x)
        context = self.context(block.context, u)
        value = linear(block.fc1, u)
        ratio = value.shape[-1] // x.shape[-1]
        value = F.gelu(value) * context.repeat(1, 1, 1, ratio) if ratio > 1 else value * context
        return x + drop_path(block.gamma * linear(block.fc2, value), block.drop_path_rate, self.training)

    def attend(self, block: AttentionBlock, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c).contiguous()
        qkv = linear(block.attn.qkv, block.norm1(x)).reshape(b, h * w, 3, block.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, -1)
        x = x + drop_path(linear(block.attn.proj, y), block.drop_path_rate, self.training)
        y = linear(block.fc2, F.gelu(linear(block.fc1, block.norm2(x))))
        x = x + drop_path(y, block.drop_path_rate, self.training)
        return x.reshape(b, h, w, c).contiguous()


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``F.linear``, whatever the layer itself does."""
    return F.linear(x, layer.weight, layer.bias)


def inference_forms(backbone: nn.Module) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """One function per name of :data:`FORMS`, images (B, 3, H, W) -> levels, all with the weights of ``backbone``.

    A backbone of another family has no plain form; its inference form is what its ``switch_to_deploy()`` makes, if it
    has one. The compiled forms compile at their first call; all are to be called under ``torch.inference_mode()``.
    """
    backbone.eval()  # some backbones return nothing here
    deploy = copy.deepcopy(backbone)
    getattr(deploy, 'switch_to_deploy', lambda: None)()
    compiled, compiled_bf16 = (compile_for_inference(copy.deepcopy(deploy)) for _ in range(2))

    def bf16(images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(images.device.type, torch.bfloat16):
            return compiled_bf16(images)

    forms = {'deploy': deploy, 'deploy, compiled': compiled, 'bf16, compiled': bf16}
    if isinstance(backbone, EfficientMod):
        forms = {'plain': PlainForm(backbone), 'training form': backbone, **forms}
    return forms


def compile_for_inference(model: nn.Module) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """``torch.compile`` for one image size, weights being constants that are laid out once for the kernels' sake."""
    compiled = torch.compile(model, dynamic=False)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with inductor.patch(freezing=True):  # looked at while compiling, which `options=` is too late for
            return compiled(images)

    return run


def output_error(levels: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest difference on any level, as a share of the level's largest value."""
    pairs = zip(levels, expected, strict=True)
    return max(((a.float() - b.float()).abs().max() / b.float().abs().max()).item() for a, b in pairs)


def training_step(form: nn.Module, images: Tensor) -> Callable[[], None]:
    """The function to be timed: forward and backward pass, gradients of all parameters."""

    def run() -> None:
        form.zero_grad(set_to_none=True)
        sum(level.square().mean() for level in form(images)).backward()

    return run


def saved_bytes(form: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass beside the parameters, every storage counted once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in form.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # holding it keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        form(images)
    return sum(storage.nbytes() for storage in kept.values())
