"""Exportable form of Mask2Former of MMSegmentation, from pixels to classes."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils import UserError
from .forms import PyramidForm
from .supported import expect
from .transformer import replace_attention


class MaskSegmentorForm(PyramidForm):
    """An encoder-decoder with the head of Mask2Former, from pixels to classes.

    (B, 3, H, W) -> the classes (B, H, W) int64, and the sums (B, classes, H, W) of which the largest decides.
    """

    task = 'segmentation'
    output_names = ['classes', 'logits']

    def __init__(self, model: nn.Module) -> None:
        check_mask_segmentor(model)
        super().__init__(model)
        self.head = copy.deepcopy(model.decode_head)
        self.head.pixel_decoder = PixelDecoder(self.head.pixel_decoder)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        all_scores, all_masks = self.head(self.pyramid(image), None)
        masks = F.interpolate(all_masks[-1], image.shape[-2:], mode='bilinear', align_corners=False).sigmoid()
        found = torch.einsum('bqc,bqhw->bchw', all_scores[-1].softmax(-1)[..., :-1], masks)
        return found.argmax(1), found


class PixelDecoder(nn.Module):
    """The library's decoder of pixels, with the levels' heights and widths as numbers.

    Args:
        original (nn.Module): Of MMDetection, whose parts it takes.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        replace_attention(original)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Maps (B, C, H, W) of all levels -> the map that masks are made of, and those that queries attend to."""
        part = self.original
        inputs, places, references, shapes = [], [], [], []
        for i in range(part.num_encoder_levels):
            level = part.num_input_levels - i - 1
            x, stride = maps[level], part.strides[level]
            height, width = x.shape[-2:]
            empty = x.new_zeros((x.shape[0], height, width), dtype=torch.bool)
            place = part.postional_encoding(empty) + part.level_encoding.weight[i][:, None, None]
            points = part.point_generator.single_level_grid_priors((height, width), level, device=x.device)
            references.append(torch.stack([points[:, 0] / (width * stride), points[:, 1] / (height * stride)], -1))
            inputs.append(part.input_convs[i](x).flatten(2).transpose(1, 2))
            places.append(place.flatten(2).transpose(1, 2))
            shapes.append((height, width))
        memory = part.encoder(
            query=torch.cat(inputs, 1),
            query_pos=torch.cat(places, 1),
            key_padding_mask=None,
            spatial_shapes=shapes,
            reference_points=torch.cat(references)[None, :, None].expand(-1, -1, len(shapes), -1),
            level_start_index=None,
            valid_ratios=None,
        )
        parts = memory.transpose(1, 2).split([height * width for height, width in shapes], -1)
        found = [level.unflatten(-1, shape) for level, shape in zip(parts, shapes)]
        for i in range(part.num_input_levels - part.num_encoder_levels - 1, -1, -1):
            x = part.lateral_convs[i](maps[i])
            larger = F.interpolate(found[-1], x.shape[-2:], mode='bilinear', align_corners=False)
            found.append(part.output_convs[i](x + larger))
        return part.mask_feature(found[-1]), found[: part.num_outs]


def check_mask_segmentor(model: nn.Module) -> None:
    """Raises UserError for a head whose work :class:`MaskSegmentorForm` does not repeat."""
    expect(model.decode_head, 'head', 'Mask2FormerHead')
    expect(model.decode_head.pixel_decoder, 'decoder of pixels', 'MSDeformAttnPixelDecoder')
    if model.test_cfg.get('mode', 'whole') != 'whole':
        raise UserError("Mask2Former is exported with test_cfg.mode='whole': MMSegmentation's slide mode fails with it")
