"""Exportable form of DETR and its kin, from pixels to a fixed number of detections: without NMS.

The library's own encoder, decoder and head are traced. Masks of the padding are made of the second input here, and
deformable attention takes the sizes of the levels as numbers, which the library holds in a tensor.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils import UserError
from .forms import Preprocess, deployed
from .supported import expect, of_form
from .suppression import clip


class TransformerForm(nn.Module):
    """DETR, Deformable DETR or DINO of MMDetection on one image of a fixed size.

    image (1, 3, H, W) pixels, image_size (2,) -> boxes (N, 4), scores (N,), labels (N,), as
    :mod:`mmefficientmod.export.description` says.

    Args:
        model (nn.Module): The detector.
        size (tuple[int, int]): H and W.

    Raises:
        UserError: If the detector has a part whose work this form does not know.
    """

    task = 'detection'
    with_mask = False
    output_names = ['boxes', 'scores', 'labels']

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        check_transformer(model)
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = copy.deepcopy(model)
        self.model.backbone = deployed(model.backbone)
        self.is_deformable = hasattr(model, 'level_embed')
        replace_attention(self.model)
        with torch.no_grad():
            maps = self.model.extract_feat(self.preprocess(torch.zeros(1, 3, *size)))
        maps = maps if self.is_deformable else maps[-1:]
        self.shapes = [(level.shape[2], level.shape[3]) for level in maps]
        for i, shape in enumerate(self.shapes):
            # The row and column of the image that each place of a map stands for, as in nearest interpolation.
            for name, axis in (('rows', 0), ('columns', 1)):
                places = torch.arange(size[axis], dtype=torch.float32)
                self.register_buffer(f'{name}{i}', F.interpolate(places[None, None], shape[axis])[0, 0])

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        maps = model.extract_feat(self.preprocess(image))
        shared, encoder = self._inputs(maps if self.is_deformable else maps[-1:], image_size)
        if self.is_deformable:
            memory = model.forward_encoder(**encoder, **shared)
            queries, _ = model.pre_decoder(**memory)
            with plain_inverse_sigmoid():
                found = model.forward_decoder(memory_mask=encoder['feat_mask'], **shared, **queries)
                logits, boxes = model.bbox_head(**found)
        else:
            queries, _ = model.pre_decoder(**model.forward_encoder(**encoder))
            masks = dict(memory_mask=encoder['feat_mask'], memory_pos=encoder['feat_pos'])
            logits, boxes = model.bbox_head(model.forward_decoder(**masks, **queries)['hidden_states'][-1:])
        return self._choose(logits[-1, 0], boxes[-1, 0], image_size)

    def _inputs(self, maps: tuple[Tensor, ...], image_size: Tensor) -> tuple[dict, dict]:
        """What encoder and decoder get, and what only the encoder gets."""
        features, masks, places, ratios = [], [], [], []
        for i, level in enumerate(maps):
            is_padding = (getattr(self, f'rows{i}') >= image_size[0])[:, None] | (
                getattr(self, f'columns{i}') >= image_size[1]
            )
            place = self.model.positional_encoding(is_padding[None])
            place = place.flatten(2).transpose(1, 2)
            if self.is_deformable:
                place = place + self.model.level_embed[i]
                ratios.append(self.model.get_valid_ratio(is_padding[None]))
            features.append(level.flatten(2).transpose(1, 2))
            masks.append(is_padding.flatten()[None])
            places.append(place)
        encoder = dict(feat=torch.cat(features, 1), feat_mask=torch.cat(masks, 1), feat_pos=torch.cat(places, 1))
        if not self.is_deformable:
            return {}, encoder
        shared = dict(spatial_shapes=self.shapes, level_start_index=None, valid_ratios=torch.stack(ratios, 1))
        return shared, encoder

    def _choose(self, logits: Tensor, boxes: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best detections of logits (Q, classes) and boxes (Q, 4), centre and size as a share of the image."""
        from mmdet.structures.bbox import bbox_cxcywh_to_xyxy

        head = self.model.bbox_head
        max_per_img = head.test_cfg.get('max_per_img', len(logits))
        if head.loss_cls.use_sigmoid:
            scores, index = logits.sigmoid().flatten().topk(max_per_img)
            labels, rows = index % head.num_classes, torch.div(index, head.num_classes, rounding_mode='floor')
        else:
            best, labels = logits.softmax(-1)[..., :-1].max(-1)
            scores, rows = best.topk(max_per_img)
            labels = labels[rows]
        boxes = bbox_cxcywh_to_xyxy(boxes[rows]) * image_size.flip(0).repeat(2)
        return clip(boxes, image_size), scores, labels


class DeformableAttention(nn.Module):
    """MMCV's multi-scale deformable attention, with the levels' heights and widths as numbers.

    Args:
        original (nn.Module): Of MMCV, whose weights it takes.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: list[tuple[int, int]] | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Queries (1, Q, C) and values (1, P, C) -> (1, Q, C); the arguments are MMCV's."""
        from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

        assert reference_points is not None and spatial_shapes is not None
        part = self.original
        identity = query if identity is None else identity
        value = part.value_proj(query if value is None else value)
        query = query if query_pos is None else query + query_pos
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        batch, count, _ = query.shape
        value = value.unflatten(-1, (part.num_heads, -1))
        shape = (batch, count, part.num_heads, part.num_levels, part.num_points)
        offsets = part.sampling_offsets(query).view(*shape, 2)
        weights = part.attention_weights(query).view(*shape[:3], -1).softmax(-1).view(shape)
        points = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            sides = torch.cat([offsets.new_full((1,), side) for shape in spatial_shapes for side in shape[::-1]])
            places = points + offsets / sides.view(-1, 1, 2)
        else:
            places = points[..., :2] + offsets / part.num_points * points[..., 2:] * 0.5
        output = multi_scale_deformable_attn_pytorch(value, spatial_shapes, places, weights)
        return part.output_proj(output) + identity


@contextlib.contextmanager
def plain_inverse_sigmoid() -> Iterator[None]:
    """Lets MMDetection compute logits without clamps in a row, which torch's ONNX exporter merges wrongly.

    The values, between 0 and 1 as results of a sigmoid, give the same logits.
    """
    from mmdet.models.dense_heads import deformable_detr_head
    from mmdet.models.layers.transformer import deformable_detr_layers, dino_layers

    modules = (deformable_detr_head, deformable_detr_layers, dino_layers)
    before = [module.inverse_sigmoid for module in modules]

    def plain(x: Tensor, eps: float = 1e-5) -> Tensor:
        least = x.new_full((1,), eps)
        return torch.log(torch.maximum(x, least) / torch.maximum(1 - x, least))

    for module in modules:
        module.inverse_sigmoid = plain
    try:
        yield
    finally:
        for module, original in zip(modules, before):
            module.inverse_sigmoid = original


def replace_attention(model: nn.Module) -> None:
    """Puts :class:`DeformableAttention` in the place of MMCV's."""
    from mmcv.ops import MultiScaleDeformableAttention

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is MultiScaleDeformableAttention:
                if not child.batch_first:
                    raise UserError('deformable attention with batch_first=False cannot be exported')
                setattr(module, name, DeformableAttention(child))


def check_transformer(model: nn.Module) -> None:
    """Raises UserError for a detector whose work :class:`TransformerForm` does not repeat."""
    kinds = of_form('transformer')
    expect(model, 'transformer', *(kind.model for kind in kinds))
    expect(model.bbox_head, 'head', *(name for kind in kinds for name in kind.heads))
    expect(model.positional_encoding, 'positional encoding', 'SinePositionalEncoding', 'LearnedPositionalEncoding')
