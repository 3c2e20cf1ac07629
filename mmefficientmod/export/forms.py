"""Exportable modules: a backbone or a segmentor from the image's pixels on, in the deploy form."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils import UserError
from .pooling import replace_pools
from .supported import matches, of_form


def swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether a model's preprocessor turns BGR into RGB; its mean and deviation are in RGB then."""
    names = ('_channel_conversion', 'channel_conversion', 'to_rgb')  # of MMDetection, MMSegmentation, MMPreTrain
    return any(getattr(preprocessor, name, False) for name in names)


class Preprocess(nn.Module):
    """Pixels to what the network sees: BGR to RGB where the model wants it, minus the mean, over the deviation.

    (B, 3, H, W) float32, BGR, 0 to 255 -> (B, 3, H, W).

    Args:
        preprocessor (nn.Module): The model's own, of MMEngine.

    Raises:
        UserError: If it is for images of another number of channels than three.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        self.swap = swaps_channels(preprocessor)
        normalises = getattr(preprocessor, '_enable_normalize', False)
        mean, std = (preprocessor.mean, preprocessor.std) if normalises else (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        for name, value in (('mean', mean), ('std', std)):
            if value.numel() != 3:
                raise UserError(
                    f'the {name} in data_preprocessor has the length {value.numel()}: a model is exported for images '
                    'of three channels, with a value for each'
                )
            self.register_buffer(name, value.detach().clone().float().view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        if self.swap:
            image = image.flip(1)
        return (image - self.mean) / self.std


class BackboneForm(nn.Module):
    """A backbone behind its preprocessing: (B, 3, H, W) pixels -> one map (B, C, H / stride, W / stride) a level."""

    task = 'backbone'

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.data_preprocessor)
        self.backbone = deployed(model.backbone)
        self.output_names = [f'level{i}' for i in self.backbone.out_indices]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(self.preprocess(image)))


class PyramidForm(nn.Module):
    """What forms of whole models begin with: a model's preprocessing, its backbone in the deploy form, its neck."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.data_preprocessor)
        self.backbone = deployed(model.backbone)
        self.neck = copy.deepcopy(model.neck) if model.with_neck else nn.Identity()

    def pyramid(self, image: Tensor) -> Any:
        """What the neck, or without one the backbone, makes of pixels (B, 3, H, W)."""
        return self.neck(self.backbone(self.preprocess(image)))


class SegmentorForm(PyramidForm):
    """An encoder-decoder of MMSegmentation in its 'whole' mode, from pixels to classes.

    (B, 3, H, W) -> the classes (B, H, W) int64, and the head's own logits (B, classes, h, w), which a reader that
    needs the classes at another size resizes first, as MMSegmentation does.
    """

    task = 'segmentation'
    output_names = ['classes', 'logits']

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = copy.deepcopy(model.decode_head)
        self.align_corners = model.align_corners
        replace_upsamples(self.head)
        replace_pools(self.head)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.pyramid(image))
        resized = F.interpolate(logits, image.shape[-2:], mode='bilinear', align_corners=self.align_corners)
        return resized.argmax(1), logits


class ClassifierForm(PyramidForm):
    """A classifier of MMPreTrain, from pixels (B, 3, H, W) to the probability of each class (B, classes)."""

    task = 'classification'
    output_names = ['scores']

    def __init__(self, model: nn.Module) -> None:
        check_classifier(model)
        super().__init__(model)
        self.head = copy.deepcopy(model.head)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.head(self.pyramid(image)).softmax(-1),)


class Upsample(nn.Module):
    """Enlarges a map by a whole factor, with sizes that stay symbols under export."""

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = [side * self.factor for side in x.shape[-2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def replace_upsamples(head: nn.Module) -> None:
    """Puts :class:`Upsample` in the place of MMSegmentation's, which turns sizes into Python's ints."""
    from mmseg.models.utils import Upsample as Original

    for module in head.modules():
        for name, child in module.named_children():
            if type(child) is Original and not child.size:
                setattr(module, name, Upsample(int(child.scale_factor), child.mode, child.align_corners))


def deployed(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone, in the deploy form where it has one."""
    backbone = copy.deepcopy(backbone)
    for module in backbone.modules():
        if hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
            break
    return backbone.eval()


def check_classifier(model: nn.Module) -> None:
    """Raises UserError for a classifier whose work :class:`ClassifierForm` does not repeat."""
    from mmpretrain.models import ClsHead, ImageClassifier

    predictions = getattr(type(getattr(model, 'head', None)), '_get_predictions', None)
    if not isinstance(model, ImageClassifier) or predictions is not ClsHead._get_predictions:
        raise UserError(
            f'{type(model).__name__} cannot be exported whole: classifiers are ImageClassifier with a head of one '
            'label per image; --part backbone exports the backbone of any'
        )


def check_segmentor(model: nn.Module) -> None:
    """Raises UserError for a segmentor whose work :class:`SegmentorForm` does not repeat."""
    names = [kind.model for kind in of_form('segmentor')]
    if not matches(model, *names):
        raise UserError(
            f'{type(model).__name__} cannot be exported whole: segmentors are {" or ".join(names)}; --part backbone '
            'exports the backbone of any segmentor'
        )
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = model.decode_head
    known = matches(head, *(name for kind in of_form('mask-segmentor') for name in kind.heads))
    plain = all(
        getattr(type(head), name, None) is getattr(BaseDecodeHead, name) for name in ('predict', 'predict_by_feat')
    )
    if not known and not plain:
        raise UserError(f'{type(head).__name__} cannot be exported: it has a prediction of its own; see --list')
    if head.out_channels == 1:
        raise UserError('a segmentor of one output channel, with a threshold, cannot be exported')
