"""Counts the parameters and multiply-accumulates of a complete detector or segmentor, or only of a backbone."""

from __future__ import annotations

import contextlib
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..codebases.building import build_quietly
from .models import detection_samples


@dataclass(frozen=True)
class Complexity:
    """The cost of one image.

    Multiply-accumulates are counted for convolutions, linear layers and matrix products. Norms, activations, softmax,
    pooling, interpolation, element-wise products and sums, RoI pooling and non-maximum suppression are not counted.
    """

    params: int  # all parameters, frozen ones too
    macs: int  # multiply-accumulates, attention's matrix products included
    # the part of `macs` that is attention's matrix products, queries by keys and weights by values: counters that only
    # look at layers miss it
    attention_macs: int


def measure_config(config: str | PathLike | Config, size: tuple[int, int] = (512, 512)) -> Complexity:
    """Counts for the model of a config.

    A two-stage detector is counted with as many proposals as its test settings allow, here 1000 boxes and 100 masks;
    a trained one may find fewer. It runs on the CPU. Any other model is only traced, on torch's meta
    device.

    Args:
        config (str | PathLike | Config): A config of MMDetection, MMSegmentation or MMPreTrain.
        size (tuple[int, int]): Height and width of the image in pixels. Defaults to ``(512, 512)``.

    Raises:
        FileNotFoundError: If the config does not exist.
    """
    if not isinstance(config, Config):
        config = Config.fromfile(config)
    scope, settings = config.get('default_scope'), deepcopy(config.model)
    if scope == 'mmdet' and 'rpn' in settings.get('test_cfg', {}):
        settings.test_cfg.rpn.nms.iou_threshold = 1.0  # suppresses nothing: always the same number of proposals
    model = build_quietly(settings, scope)
    if scope != 'mmdet':
        return measure_model(model.to('meta'), size, mode='tensor')
    return measure_model(model, size, detection_samples(1, size), mode='tensor')


def operations(module: nn.Module, *args: Any, **kwargs: Any) -> dict[object, int]:
    """Torch operator -> floating-point operations of a forward pass, 2 for a multiply-add; see :class:`Complexity`."""
    with torch.no_grad(), _attention_by_products(), FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)
    return counter.get_flop_counts().get('Global', {})


def _attention_by_products() -> contextlib.AbstractContextManager:
    """Takes attention apart into the matrix products that the counter knows on every device."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before torch 2.3
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=True, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


def measure_model(model: nn.Module, size: tuple[int, int] = (512, 512), *args: Any, **kwargs: Any) -> Complexity:
    """Counts for a module that takes an image (1, 3, H, W), on the device that it is on.

    Args:
        model (nn.Module): The module; it comes back in evaluation mode.
        size (tuple[int, int]): Height and width of the image in pixels. Defaults to ``(512, 512)``.
        *args, **kwargs: Passed on to the module after the image.
    """
    parameters = list(model.parameters())
    image = torch.zeros(1, 3, *size, device=parameters[0].device)
    model.eval()  # some backbones return nothing here
    flops = operations(model, image, *args, **kwargs)
    attention = sum(flops.get(product, 0) for product in (torch.ops.aten.bmm, torch.ops.aten.baddbmm))
    return Complexity(sum(p.numel() for p in parameters), sum(flops.values()) // 2, attention // 2)
