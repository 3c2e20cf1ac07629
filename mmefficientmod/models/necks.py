"""What stands between EfficientMod and the linear layer of its classifier."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..registry import MODELS


@MODELS.register_module()
class NormPooling(BaseModule):
    """LayerNorm over the channels of every pixel, then the mean over all pixels.

    MMPreTrain has either behind the other: its ConvNeXt normalises what is pooled already.

    Args:
        in_channels (int): Channels of the last level.
        init_cfg (dict, optional): Initialisation. Defaults to None: ones and zeros.
    """

    def __init__(self, in_channels: int, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.norm = nn.LayerNorm(in_channels)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor]:
        """Takes the last of some levels (B, C, H, W); returns a tuple of one vector an image (B, C)."""
        return (self.norm(levels[-1].permute(0, 2, 3, 1)).mean((1, 2)),)
