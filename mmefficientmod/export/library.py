"""Predicts with a trained model through the inferencer of its own library."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Callable, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..codebases.building import check_device
from ..codebases.config import find_test_pipeline
from ..codebases.nodes import type_name
from ..utils import UserError, describe_error, quiet
from .inputs import Size
from .pipeline import LOADERS, NO_IMAGE_STEP, check_loading, natural_sizes, read_steps
from .results import Classification, Detections, Result, Segmentation, cut_mask
from .source import Source, detection_settings

VISUALIZERS = {'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer', 'mmpretrain': 'UniversalVisualizer'}
T = TypeVar('T')
# Logits (1, classes, h, w), size of the input, its padding, size of the image, align_corners -> (1, H, W).
OfLogits = Callable[[Tensor, Size, Sequence[int], Size, bool], Tensor]
PART_ELEMENTS = 2**24  # of logits that are resized at once


class LibraryModel:
    """A model of MMDetection, MMSegmentation or MMPreTrain with its library's inferencer.

    Args:
        source (Source): The model.
        device (str, optional): Such as ``'cpu'`` or ``'cuda:0'``. Defaults to the best that there is.
        score_thr (float): The least score of an object. Defaults to 0.3.

    Raises:
        UserError: With one line, if the device or the config's test pipeline cannot be used.
    """

    def __init__(self, source: Source, device: str | None = None, score_thr: float = 0.3) -> None:
        self.source, self.score_thr = source, score_thr
        self.task, self.classes, self.palette = source.task, source.classes, source.palette
        test_cfg = detection_settings(source.model.test_cfg or {}) if self.task == 'detection' else {}
        self.max_per_img: int | None = test_cfg.get('max_per_img')
        source.model.to(check_device(device))
        self.mixed_sizes = self._takes_mixed_sizes()
        try:
            with quiet():
                init_default_scope(source.codebase)  # MMPreTrain's inferencer leaves it as it is
                self._inferencer = make_inferencer(source)
        except UserError:
            raise
        except Exception as error:  # whatever the steps of a pipeline raise about their settings
            raise UserError(f'the test pipeline of the config cannot be built ({describe_error(error)})') from error

    def _takes_mixed_sizes(self) -> bool:
        """Whether images of several sizes fit into one batch: segmentors and classifiers take equal ones only."""
        if self.task == 'classification':
            with contextlib.suppress(UserError):
                return len(natural_sizes(read_steps(self.source.config, self.source.codebase), 1)) == 1
        return self.task == 'detection'

    def predict(self, images: list[np.ndarray], pad_to: Size | None = None) -> list[Result]:
        """Predicts on images, BGR (H, W, 3) uint8.

        Args:
            images (list[np.ndarray]): The images.
            pad_to (tuple[int, int], optional): Height and width to which the network's input is padded, as next to a
                larger image in a batch of MMDetection.

        Raises:
            UserError: If the library cannot predict on them.
        """
        method = {'detection': self._detect, 'segmentation': self._segment, 'classification': self._classify}[self.task]
        return self._pass(method, images, pad_to)

    def lead(self, image: np.ndarray, rivals: np.ndarray, pad_to: Size | None = None) -> np.ndarray:
        """By how much the logit of each pixel's class exceeds that of another class, see :func:`lead_over`: (H, W).

        Args:
            image (np.ndarray): BGR (H, W, 3) uint8.
            rivals (np.ndarray): The other class of each pixel (H, W).
            pad_to (tuple[int, int], optional): As of :meth:`predict`.
        """
        measure = partial(lead_over, torch.from_numpy(rivals.astype(np.int64)))
        (found,) = self._pass(partial(self._pixels, of_logits=measure), [image], pad_to)
        return found

    def _pass(
        self, method: Callable[[list[np.ndarray]], list[T]], images: list[np.ndarray], pad_to: Size | None
    ) -> list[T]:
        try:
            with quiet(), padded_inputs(self.source.model, pad_to), torch.no_grad():
                return method(images)
        except UserError:
            raise
        except (Exception, MemoryError) as error:  # whatever a pipeline or a model raises about an image
            raise UserError(f'cannot be predicted on ({describe_error(error)})') from error

    def _detect(self, images: list[np.ndarray]) -> list[Result]:
        with safe_mask_pasting():
            found = self._inferencer(images, batch_size=len(images), return_datasamples=True, no_save_vis=True)
        return [self._objects(sample) for sample in found['predictions']]

    def _objects(self, sample: Any) -> Detections:
        if 'pred_instances' not in sample or 'bboxes' not in sample.pred_instances:
            name = type(self.source.model).__name__
            raise UserError(f'{name} predicts no boxes: only detectors of boxes, with masks or without, are supported')
        instances = sample.pred_instances
        instances = instances[instances.scores >= self.score_thr].cpu()
        masks = instances.get('masks')
        boxes = instances.bboxes if isinstance(instances.bboxes, Tensor) else instances.bboxes.tensor
        return Detections(
            boxes.numpy().astype(np.float32),
            instances.scores.numpy().astype(np.float32),
            instances.labels.numpy(),
            None if masks is None else [cut_mask(np.asarray(mask, bool)) for mask in masks],
        )

    def _segment(self, images: list[np.ndarray]) -> list[Result]:
        kind = np.uint8 if getattr(self.source.model, 'out_channels', 257) <= 256 else np.uint16
        return [Segmentation(classes.astype(kind)) for classes in self._pixels(images, largest_class)]

    def _pixels(self, images: list[np.ndarray], of_logits: OfLogits) -> list[np.ndarray]:
        """What a function makes of a segmentor's logits, on each image (H, W)."""
        with logits_in_parts(self.source.model, of_logits):
            samples = self._inferencer(images, batch_size=len(images), return_datasamples=True)
        samples = samples if isinstance(samples, list) else [samples]
        return [sample.pred_sem_seg.data[0].cpu().numpy() for sample in samples]

    def _classify(self, images: list[np.ndarray]) -> list[Result]:
        # Not its __call__, which draws a progress bar of its own for each.
        batches = self._inferencer.preprocess(images, batch_size=len(images))
        samples = [sample for batch in batches for sample in self._inferencer.forward(batch)]
        return [Classification(sample.pred_score.cpu().numpy()) for sample in samples]


def make_inferencer(source: Source) -> Any:
    """The library's inferencer around a model that is built and loaded."""
    model, codebase = source.model, source.codebase
    config = inference_config(source.config, codebase)
    if codebase == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        model._config = config
        return ImageClassificationInferencer(model)
    if codebase == 'mmdet':
        from mmdet.apis import DetInferencer as Inferencer
    else:
        from mmseg.apis import MMSegInferencer as Inferencer

    class Ready(Inferencer):  # its own would build the model and read the checkpoint again
        def _init_model(self, *args: object, **kwargs: object) -> nn.Module:
            model.cfg, model.dataset_meta = config, dict(classes=source.classes, palette=source.palette)
            return model

    inferencer = Ready(config, device=str(next(model.parameters()).device))
    inferencer.show_progress = False
    return inferencer


def inference_config(config: Config, codebase: str) -> Config:
    """What an inferencer reads of a config: the test pipeline with its types by name, without annotations."""
    pipeline = [copy.deepcopy(dict(step)) for step in find_test_pipeline(config)]
    pipeline = [step for step in pipeline if not NO_IMAGE_STEP.fullmatch(type_name(step)) or 'Pack' in type_name(step)]
    loaders = [step for step in pipeline if type_name(step) in LOADERS]
    if not loaders:
        pipeline.insert(0, dict(type='LoadImageFromFile'))
    for step in loaders:
        check_loading(type_name(step), step)
        step['type'] = 'LoadImageFromFile'  # which the inferencers look for by this name
    return Config(
        dict(
            default_scope=codebase,
            test_dataloader=dict(dataset=dict(pipeline=[ConfigDict(step) for step in pipeline])),
            visualizer=dict(type=VISUALIZERS[codebase]),
        )
    )


@contextlib.contextmanager
def padded_inputs(model: nn.Module, size: Size | None) -> Iterator[None]:
    """Pads what the model's preprocessor returns to a height and width, with its padding value, and notes it."""
    if size is None:
        yield
        return
    preprocessor = model.data_preprocessor
    forward = preprocessor.forward

    def padded(data: dict, training: bool = False) -> dict:
        found = forward(data, training)
        height, width = found['inputs'].shape[-2:]
        right, bottom = size[1] - width, size[0] - height
        value = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
        found['inputs'] = F.pad(found['inputs'], (0, right, 0, bottom), value=value)
        for sample in found['data_samples'] or ():
            before = sample.metainfo.get('img_padding_size', (0, 0, 0, 0))
            sample.set_metainfo(dict(batch_input_shape=tuple(size)))
            if hasattr(preprocessor, 'test_cfg'):  # MMSegmentation cuts this off its result
                padding = (0, before[1] + right, 0, before[3] + bottom)
                sample.set_metainfo(dict(img_padding_size=padding, pad_shape=tuple(size)))
        return found

    preprocessor.forward = padded
    try:
        yield
    finally:
        del preprocessor.forward


@contextlib.contextmanager
def safe_mask_pasting() -> Iterator[None]:
    """Lets MMDetection paste masks of boxes outside the image, as the step Pad makes them: it has an error there."""
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    paste = fcn_mask_head._do_paste_mask

    def safe(masks: Tensor, boxes: Tensor, height: int, width: int, skip_empty: bool = True) -> Any:
        low, high = boxes.min(0).values[:2], boxes.max(0).values[2:]
        is_outside = bool(low[0] > width or low[1] > height or high.min() < 0)
        return paste(masks, boxes, height, width, skip_empty and not is_outside)

    fcn_mask_head._do_paste_mask = safe
    try:
        yield
    finally:
        fcn_mask_head._do_paste_mask = paste


@contextlib.contextmanager
def logits_in_parts(model: nn.Module, of_logits: OfLogits) -> Iterator[None]:
    """Lets a segmentor of MMSegmentation resize a few classes at a time: all of them may take gigabytes.

    Heads with a resizing of their own keep it; those with one output channel go MMSegmentation's way.

    Args:
        model (nn.Module): The segmentor.
        of_logits (Callable): Makes its prediction of the logits: :func:`largest_class` for the library's own.
    """
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head: Any = getattr(model, 'decode_head', None)
    whole = model.test_cfg.get('mode', 'whole') == 'whole'
    original = model.postprocess_result
    names = ('predict', 'predict_by_feat')
    is_plain = isinstance(head, BaseDecodeHead) and all(
        getattr(type(head), name) is getattr(BaseDecodeHead, name) for name in names
    )
    defers = whole and is_plain and head.out_channels > 1
    align_corners = getattr(model, 'align_corners', False)

    def postprocess(logits: Tensor, samples: Any) -> Any:
        from mmengine.structures import PixelData

        meta = samples[0].metainfo
        inner = tuple(meta.get('pad_shape', meta['img_shape'])[:2]) if defers else tuple(logits.shape[-2:])
        if logits.shape[1] == 1 or any(sample.metainfo.get('flip') for sample in samples):
            return original(F.interpolate(logits, inner, mode='bilinear', align_corners=align_corners), samples)
        for i, sample in enumerate(samples):
            meta = sample.metainfo
            padding = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
            found = of_logits(logits[i : i + 1], inner, padding, meta['ori_shape'][:2], align_corners)
            sample.set_data(dict(pred_sem_seg=PixelData(data=found)))
        return samples

    model.postprocess_result = postprocess
    if defers:
        head.predict_by_feat = lambda logits, metas: logits
    try:
        yield
    finally:
        del model.postprocess_result
        if defers:
            head.__dict__.pop('predict_by_feat', None)


def largest_class(logits: Tensor, inner: Size, padding: Sequence[int], size: Size, align_corners: bool) -> Tensor:
    """The class of each pixel (1, H, W) of an image, of logits (1, classes, h, w), as MMSegmentation computes it."""
    best = classes = None
    for start, part in _resized_parts(logits, inner, padding, size, align_corners):
        value, index = part.max(0)
        if best is None or classes is None:
            best, classes = value, index + start
        else:
            classes = torch.where(value > best, index + start, classes)
            best = torch.maximum(value, best)
    assert classes is not None
    return classes[None]


def lead_over(
    rivals: Tensor, logits: Tensor, inner: Size, padding: Sequence[int], size: Size, align_corners: bool
) -> Tensor:
    """By how much the largest logit of each pixel exceeds that of another class, as a share of the logits' range.

    Args:
        rivals (Tensor): The other class of each pixel (H, W) int64.
        logits (Tensor): (1, classes, h, w); these and the others as of :func:`largest_class`.
        inner (tuple[int, int]): Height and width of the network's input.
        padding (Sequence[int]): Of that input: left, right, top, bottom.
        size (tuple[int, int]): Height and width of the image.
        align_corners (bool): Of the resizing.

    Returns:
        Tensor: (1, H, W); NaN where all logits are the same.
    """
    rivals = rivals.to(logits.device)
    best = torch.full(tuple(size), -torch.inf, device=logits.device)
    rival, least = torch.zeros_like(best), torch.inf
    for start, part in _resized_parts(logits, inner, padding, size, align_corners):
        best = torch.maximum(best, part.amax(0))
        least = min(least, float(part.min()))
        value = part.gather(0, (rivals - start).clamp(0, len(part) - 1)[None])[0]
        rival = torch.where((rivals >= start) & (rivals < start + len(part)), value, rival)
    return ((best - rival) / (best.max() - least))[None]


def _resized_parts(
    logits: Tensor, inner: Size, padding: Sequence[int], size: Size, align_corners: bool
) -> Iterator[tuple[int, Tensor]]:
    """Logits at the size of an image, some classes at a time: the number of the first one, and (classes, H, W)."""
    step = max(1, PART_ELEMENTS // max(inner[0] * inner[1], size[0] * size[1]))
    left, right, top, bottom = padding
    for start in range(0, logits.shape[1], step):
        part = logits[:, start : start + step]
        for shape in (inner, size):
            if tuple(part.shape[-2:]) != tuple(shape):
                part = F.interpolate(part, tuple(shape), mode='bilinear', align_corners=align_corners)
            if shape is inner:
                part = part[..., top : inner[0] - bottom, left : inner[1] - right]
        yield start, part[0]
