"""Times the depth-wise convolution of the context branch in both memory layouts, which its rule chooses from."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..models import EfficientMod
from ..models.depthwise import conv_layout
from .latency import DTYPES
from .machine import time_once

LAYOUTS = {'NCHW': torch.contiguous_format, 'channels-last': torch.channels_last}


@dataclass
class LayoutTimes:
    """Median times of one stage's convolution, copies from and to NHWC included, and which layout the rule names."""

    stage: int  # 1 to 4
    shape: tuple[int, int, int, int]  # B, C, H, W
    precision: str  # a key of DTYPES
    work: str  # 'forward', or 'training' with the backward pass
    nchw_ms: float
    channels_last_ms: float
    rule: str  # a key of LAYOUTS

    @property
    def faster(self) -> str:
        """The layout that the rule should name on this device."""
        return 'NCHW' if self.nchw_ms < self.channels_last_ms else 'channels-last'


def time_layouts(
    device: torch.device,
    precisions: Sequence[str] = tuple(DTYPES),
    batches: Sequence[int] = (1, 32),
    size: tuple[int, int] = (512, 512),
    repeats: int = 20,
    warmup: int = 3,
) -> Iterator[LayoutTimes]:
    """Times both layouts in turns, at every stage of EfficientMod-s, in all precisions and batch sizes.

    Args:
        device (torch.device): A CPU or a GPU.
        precisions (Sequence[str]): Keys of ``DTYPES``. Defaults to all.
        batches (Sequence[int]): Images at once. Defaults to 1 and 32.
        size (tuple[int, int]): Height and width of the images. Defaults to 512 x 512.
        repeats (int): Measured passes. Defaults to 20.
        warmup (int): Passes before. Defaults to 3.
    """
    for stage, channels in enumerate(EfficientMod('s').out_channels):
        height, width = (side // (4 * 2**stage) for side in size)
        for precision in precisions:
            dtype = DTYPES[precision] or torch.float32
            conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels).to(device, dtype)
            rule = next(name for name, layout in LAYOUTS.items() if layout == conv_layout(device.type, dtype))
            for batch in batches:
                x = torch.rand(batch, height, width, channels, device=device, dtype=dtype, requires_grad=True)
                for work in ('forward', 'training'):
                    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
                    for i in range(warmup + repeats):
                        for name, layout in LAYOUTS.items():
                            ms = time_once(partial(_run, conv, x, layout, work), device)
                            times[name] += [ms] if i >= warmup else []
                    nchw, channels_last = (statistics.median(times[name]) for name in LAYOUTS)
                    shape = batch, channels, height, width
                    yield LayoutTimes(stage + 1, shape, precision, work, nchw, channels_last, rule)


def _run(conv: nn.Conv2d, x: Tensor, layout: torch.memory_format, work: str) -> Tensor:
    """One pass over NHWC activations (B, H, W, C)."""
    with torch.set_grad_enabled(work == 'training'):
        y = conv(x.permute(0, 3, 1, 2).contiguous(memory_format=layout)).permute(0, 2, 3, 1).contiguous()
        if work == 'training':
            x.grad = None
            conv.zero_grad(set_to_none=True)
            y.backward(torch.ones_like(y))
    return y
