"""Agreement: of an exportable form with the library's own result, of each file with the form, and of predictions."""

from __future__ import annotations

import copy
import math
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils import UserError
from .description import FILE_LIMIT, Description
from .images import read_image
from .inputs import Prepared, Size, prepare
from .library import LibraryModel, lead_over, safe_mask_pasting
from .model import ExportedModel
from .results import Classification, Detections, Mask, Segmentation, image_chances, paste_chances

CLASS_LIMIT = 1e-4  # share of pixels of another class
# Of the logits' range: two classes as close as this change places by float32's last digits. Files of trained segmentors
# were seen to move a logit by up to 7e-7 of that range.
CLASS_TIE = 1e-5
PROBABILITY_LIMIT = 1e-4
SCORE_LIMIT = 1e-3
IOU_LIMIT = 0.99  # of boxes and of masks
SIZES = ((1, 224, 224), (1, 320, 192), (2, 96, 160), (1, 333, 517), (3, 32, 32), (1, 65, 47))  # batch, height, width
NOISE = 1e-3  # of 255 grey levels: what changes a result decides by the last digits

Outputs = typing.Mapping[str, typing.Any]
Run = Callable[[dict], Outputs]


# Samples -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What is put in: ``image`` (B, 3, H, W) float32, and the height and width in it without padding."""

    name: str
    image: np.ndarray
    size: Size
    pixels: np.ndarray | None = None  # the image that it was made of, BGR (H, W, 3) uint8
    prepared: Prepared | None = None

    @property
    def variant(self) -> int:
        """Which of the description's sizes it is for."""
        return self.prepared.variant if self.prepared else 0


def make_sample(name: str, pixels: np.ndarray, description: Description) -> Sample:
    """The sample of an image, BGR (H, W, 3) uint8; for a fixed batch, as often as the batch is large."""
    prepared = prepare(pixels, description)
    image = np.repeat(prepared.image[None], description.batch or 1, 0)
    return Sample(name, image, prepared.size, pixels, prepared)


class ImageSamples(typing.Sequence[Sample]):  # that of collections.abc needs Python 3.9
    """The user's images, prepared as the file wants them; read when asked for, as many are large.

    Args:
        paths (Sequence[Path]): The images.
        description (Description): Of the file.
        option (str): The command line's option that named them, for messages.
    """

    def __init__(self, paths: Sequence[Path], description: Description, option: str) -> None:
        self.paths, self.description, self.option = paths, description, option

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """Reads an image.

        Raises:
            UserError: If it cannot be read.
        """
        path = self.paths[index]
        try:
            return make_sample(str(path), read_image(path), self.description)
        except UserError as error:
            raise UserError(f'{path} {error}: leave it out of {self.option}') from None

    def for_size(self, size: Size | None) -> ImageSamples:
        """The same images, all of them prepared for one of the description's sizes."""
        sizes = [list(size)] if size else []
        return ImageSamples(self.paths, replace(self.description, sizes=sizes), self.option)


def generated_images(description: Description) -> dict[str, np.ndarray]:
    """Images that are made up, by name, BGR (H, W, 3) uint8: of several shapes, tiny, large, and grey."""
    height, width = sorted(description.sizes[0]) if description.sizes else (240, 320)
    shapes = dict(
        landscape=(height * 3 // 5, width * 3 // 5),
        portrait=(width * 3 // 5, height * 3 // 5),
        panorama=(width // 5, width),
        tiny=(24, 40),
        large=(height * 6 // 5, width * 6 // 5),
        grey=(height // 2, height // 2),
    )
    found = {}
    for seed, (name, (h, w)) in enumerate(shapes.items()):
        image = _patches(1, h, w, seed)[0].transpose(1, 2, 0).astype(np.uint8)
        if name == 'grey':
            image = np.repeat(image[..., :1], 3, 2)
        found[f'made up, {name} {h} x {w}'] = image
    return found


def generated_batches() -> list[Sample]:
    """Made-up inputs of several batches and sizes, for files whose sizes are free."""
    return [
        Sample(f'made up, {b} x {h} x {w}', _patches(b, h, w, seed), (h, w)) for seed, (b, h, w) in enumerate(SIZES)
    ]


def fixed_batch(description: Description, variant: int) -> Sample:
    """A made-up input of one of the fixed sizes."""
    height, width = description.sizes[variant]
    return Sample('made up', _patches(description.batch or 1, height, width, 0), (height, width))


def usable_samples(images: dict[str, np.ndarray], description: Description) -> Iterator[Sample]:
    """The samples of made-up images, without those that the model cannot take."""
    for name, image in images.items():
        try:
            yield make_sample(name, image, description)
        except UserError:
            continue


def _patches(batch: int, height: int, width: int, seed: int) -> np.ndarray:
    """Coloured patches with fine texture (B, 3, H, W), whole numbers from 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, max(height // 24, 2), max(width // 24, 2), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode='bicubic')
    texture = torch.rand(batch, 3, height, width, generator=generator)
    return (smooth * 215 + texture * 40).clamp(0, 255).round().numpy()


def with_noise(sample: Sample) -> Sample:
    """The sample with noise that no right comparison depends on."""
    noise = np.random.default_rng(0).uniform(-NOISE, NOISE, sample.image.shape).astype(np.float32)
    return replace(sample, image=sample.image + noise)


# Results -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def library_result(model: nn.Module, task: str, sample: Sample) -> Outputs:
    """What the library itself makes of a sample, under the names of the form's outputs."""
    images = torch.from_numpy(sample.image)
    preprocessor = copy.copy(model.data_preprocessor)
    preprocessor.pad_size_divisor, preprocessor.test_cfg = 1, None  # a sample has its padding
    if task == 'backbone':
        inputs = preprocessor(dict(inputs=list(images)))['inputs']
        return {f'level{i}': v.numpy() for i, v in zip(model.backbone.out_indices, model.backbone(inputs))}
    if task == 'classification':
        found = model.predict(preprocessor(dict(inputs=list(images)))['inputs'])
        return dict(scores=torch.stack([item.pred_score for item in found]).numpy())
    if task == 'segmentation':
        return _segment(model, preprocessor, images)
    return _detect(model, preprocessor, images, sample.size)


def _segment(model: nn.Module, preprocessor: nn.Module, images: Tensor) -> Outputs:
    from mmseg.structures import SegDataSample

    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), tuple(images.shape[-2:]))
    samples = [SegDataSample(metainfo=dict(shapes)) for _ in images]
    data = preprocessor(dict(inputs=list(images), data_samples=samples))
    mode = model.test_cfg.get('mode', 'whole')
    model.test_cfg['mode'] = 'whole'  # a form sees a window of a sliding segmentor
    try:
        found = model.predict(data['inputs'], data['data_samples'])
    finally:
        model.test_cfg['mode'] = mode
    classes, logits = (
        torch.stack([item.get(name).data for item in found]).numpy() for name in ('pred_sem_seg', 'seg_logits')
    )
    return dict(classes=classes[:, 0], logits=logits)


def _detect(model: nn.Module, preprocessor: nn.Module, images: Tensor, size: Size) -> Outputs:
    from mmdet.structures import DetDataSample

    shapes = dict.fromkeys(('pad_shape', 'batch_input_shape'), tuple(images.shape[-2:]))
    meta = dict(shapes, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    data = preprocessor(dict(inputs=list(images), data_samples=[DetDataSample(metainfo=dict(meta))]))
    data['data_samples'][0].set_metainfo(meta)  # the preprocessor takes the padding for a part of the image
    with safe_mask_pasting():
        found = model.predict(data['inputs'], data['data_samples'])[0].pred_instances
    result = dict(boxes=found.bboxes.numpy(), scores=found.scores.numpy(), labels=found.labels.numpy())
    if 'masks' in found:
        result['pasted'] = np.asarray(found.masks)
    return result


def compare(
    task: str,
    expected: Outputs,
    found: Outputs,
    sample: Sample,
    mask_thr: float | None = None,
    align_corners: bool = False,
) -> list[dict]:
    """The checks of one result: dicts with ``name``, ``figure``, ``limit`` and ``passed``.

    Where a value on either side is NaN or infinite, each figure is infinite: a comparison would pass NaN over.

    Args:
        task (str): Of the model.
        expected (Mapping): The outputs to agree with.
        found (Mapping): The outputs to check.
        sample (Sample): The input.
        mask_thr (float, optional): Of a detector's masks. Defaults to 0.5.
        align_corners (bool): Of the resizing of a segmentor's logits. Defaults to False.
    """
    with np.errstate(invalid='ignore'):
        if task == 'segmentation':
            lead = partial(_lead, expected['logits'], align_corners)
            checks = [compare_classes(expected['classes'], found['classes'], lead)]
        else:
            checks = _compare(task, expected, found, sample, mask_thr)
    if is_finite(expected) and is_finite(found):
        return checks
    return [_check(check['name'], math.inf, check['limit']) for check in checks]


def is_finite(outputs: Outputs) -> bool:
    """Whether no value of a result is NaN or infinite."""
    arrays = (value for value in outputs.values() if isinstance(value, np.ndarray) and value.dtype.kind == 'f')
    return all(np.isfinite(value).all() for value in arrays)


def _compare(task: str, expected: Outputs, found: Outputs, sample: Sample, mask_thr: float | None) -> list[dict]:
    if task == 'backbone':
        return [_check('largest difference of a level, as a share', level_difference(expected, found), FILE_LIMIT)]
    if task == 'classification':
        difference = float(np.abs(expected['scores'] - found['scores']).max())
        return [_check('largest difference of a probability', difference, PROBABILITY_LIMIT)]
    wanted, made = (_pasted(result, sample, sample.size, mask_thr) for result in (expected, found))
    return compare_detections(wanted, made, found)


def compare_classes(expected: np.ndarray, found: np.ndarray, lead: Callable[[np.ndarray], np.ndarray]) -> dict:
    """The check of classes.

    Where too many differ, those do not count whose logits in the reference nearly tie. A file cannot use this to hide a
    difference: its own logits have no say.

    Args:
        expected (np.ndarray): Classes of the reference.
        found (np.ndarray): Classes to check, of the same shape.
        lead (Callable): By how much, in the reference, the logit of the expected class exceeds that of these other
            classes, as a share of the logits' range.
    """
    different = expected != found
    if different.mean() > CLASS_LIMIT:  # only then, as it may take a further pass of the model
        different &= ~(lead(found) <= CLASS_TIE)  # a lead of NaN counts as a difference
    return _check('share of pixels of another class', float(different.mean()), CLASS_LIMIT)


def _lead(logits: np.ndarray, align_corners: bool, rivals: np.ndarray) -> np.ndarray:
    """The lead over other classes (B, H, W), of logits (B, classes, h, w)."""
    size = (rivals.shape[1], rivals.shape[2])
    settings = (size, (0, 0, 0, 0), size, align_corners)
    pairs = zip(torch.from_numpy(rivals), torch.from_numpy(logits))
    return torch.cat([lead_over(other, one[None], *settings) for other, one in pairs]).numpy()


def level_difference(expected: Outputs, found: Outputs) -> float:
    """The largest difference of any output of these, as a share of the largest value of that output.

    Infinite where shapes differ or a value is NaN or infinite.
    """
    if not is_finite(expected) or not is_finite(found):
        return math.inf
    shares = []
    for name, value in expected.items():
        if value.shape != found[name].shape:
            return math.inf
        shares.append(float(np.abs(value - found[name]).max() / max(np.abs(value).max(), 1e-12)))
    return max(shares)


def compare_detections(expected: Outputs, found: Outputs, raw: Outputs) -> list[dict]:
    """Matches each detection with one of the same label; see the limits above.

    Detections whose score is within the limit of the worst one that was kept may be missing where the number of
    detections is bounded: which of them are kept is then a matter of the last digit. So is the side of the threshold on
    which a mask's value lies that is as close to it: such pixels do not count, as one is much in a mask of thirty.
    """
    taken: set[int] = set()
    misses, worst_score, worst_box, worst_mask = 0, 0.0, 1.0, 1.0
    full = len(expected['scores']) == len(raw['scores'])
    edge = float(expected['scores'].min()) + SCORE_LIMIT if full and len(expected['scores']) else -1.0
    for i in np.argsort(-expected['scores']):
        fits = [
            j for j in range(len(found['scores'])) if j not in taken and found['labels'][j] == expected['labels'][i]
        ]
        fits = [j for j in fits if abs(found['scores'][j] - expected['scores'][i]) <= SCORE_LIMIT]
        ious = box_ious(expected['boxes'][i], found['boxes'][fits]) if fits else np.zeros(0)
        if not fits or ious.max() < IOU_LIMIT:
            misses += expected['scores'][i] > edge
            continue
        j = fits[int(ious.argmax())]
        taken.add(j)
        worst_box = min(worst_box, float(ious.max()))
        worst_score = max(worst_score, float(abs(found['scores'][j] - expected['scores'][i])))
        if 'pasted' in expected:
            a, b = expected['pasted'][i], found['pasted'][j]
            a = np.where(found['borderline'][j], b, a)
            union = (a | b).sum()
            worst_mask = min(worst_mask, float((a & b).sum() / union) if union else 1.0)
    misses += sum(found['scores'][j] > edge for j in range(len(found['scores'])) if j not in taken)
    checks = [
        _check(f'detections without their like, of {len(expected["scores"])}', int(misses), 0),
        _check('largest difference of a score', worst_score, SCORE_LIMIT),
        _check('1 - smallest IoU of boxes', 1 - worst_box, 1 - IOU_LIMIT),
    ]
    if 'pasted' in expected:
        checks.append(_check('1 - smallest IoU of masks', 1 - worst_mask, 1 - IOU_LIMIT))
    if 'left_out' in raw:
        checks.append(_check('candidates that NMS should have seen', int(raw['left_out']), 0))
    return checks


def box_ious(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (N, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common
    return np.where(union > 0, common / np.maximum(union, 1e-12), (np.abs(others - box).max(1) < 1e-3).astype(float))


class PastedMasks(typing.Sequence[np.ndarray]):
    """Masks (H, W) bool of a whole image, made when asked for: all of them at once may be gigabytes."""

    def __init__(self, masks: Sequence[Mask], size: Size) -> None:
        self.masks, self.size = masks, size

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        mask, whole = self.masks[index], np.zeros(self.size, bool)
        rows, columns = mask.bits.shape
        whole[mask.top : mask.top + rows, mask.left : mask.left + columns] = mask.bits
        return whole


def _pasted(
    result: Outputs, sample: Sample, size: Size, mask_thr: float | None, scale: tuple[float, float] = (1.0, 1.0)
) -> Outputs:
    """The rows that are detections, on the image; masks as bits of it, with those that are at the threshold."""
    rows = result['scores'] > 0
    kept = {name: value[rows] for name, value in result.items() if np.ndim(value)}
    kept['boxes'] = (kept['boxes'] / np.array(scale * 2, np.float32)).astype(np.float32)
    inner = sample.image.shape[2], sample.image.shape[3]
    if 'masks' in kept:
        chances = (paste_chances(mask, box, *size) for mask, box in zip(kept.pop('masks'), kept['boxes']))
    elif 'image_masks' in kept:
        chances = (image_chances(logits, inner, scale, size) for logits in kept.pop('image_masks'))
    else:
        return kept
    threshold = 0.5 if mask_thr is None else mask_thr
    bits, near = [], []
    for left, top, values in chances:
        bits.append(Mask(left, top, values >= threshold))
        near.append(Mask(left, top, np.abs(values - threshold) <= SCORE_LIMIT))
    return dict(kept, pasted=PastedMasks(bits, size), borderline=PastedMasks(near, size))


def _check(name: str, figure: float, limit: float) -> dict:
    return dict(name=name, figure=figure, limit=limit, passed=bool(figure <= limit))


# Predictions ---------------------------------------------------------------------------------------------------------


def compare_predictions(
    model: ExportedModel, run: Run, feeds: dict, sample: Sample, library: LibraryModel, pad_to: Size | None
) -> list[dict]:
    """Compares what an exported model predicts on an image with what the library predicts.

    Args:
        model (ExportedModel): Takes every score.
        run (Callable): A pass of its file.
        feeds (dict): The sample's inputs by name.
        sample (Sample): Of an image.
        library (LibraryModel): The same model by its library; takes every score.
        pad_to (tuple[int, int], optional): What the library pads its input to.

    Returns:
        list[dict]: The checks, as of :func:`compare`.
    """
    assert sample.pixels is not None and sample.prepared is not None
    size = (sample.pixels.shape[0], sample.pixels.shape[1])
    (expected,) = library.predict([sample.pixels], pad_to)
    if isinstance(expected, Detections):
        outputs = run(feeds)
        wanted: dict = dict(boxes=expected.boxes, scores=expected.scores, labels=expected.labels)
        if expected.masks is not None:
            wanted['pasted'] = PastedMasks(expected.masks, size)
        found = _pasted(outputs, sample, size, model.description.mask_thr, sample.prepared.scale)
        checks = compare_detections(wanted, found, outputs)
    else:
        (result,) = model.predict([sample.pixels])
        if isinstance(expected, Segmentation):
            assert isinstance(result, Segmentation)
            lead = partial(library.lead, sample.pixels, pad_to=pad_to)
            checks = [compare_classes(expected.classes, result.classes, lead)]
        else:
            assert isinstance(expected, Classification) and isinstance(result, Classification)
            difference = float(np.abs(expected.scores - result.scores).max())
            checks = [_check('largest difference of a probability', difference, PROBABILITY_LIMIT)]
    return [dict(check, name=f'predictions: {check["name"]}') for check in checks]


def worst(checks: Sequence[dict]) -> list[dict]:
    """One line for each kind of check of a form: the sample with the largest figure, and the number of samples."""
    kinds: dict[tuple[str, str], list[dict]] = {}
    for check in checks:
        kinds.setdefault((check['form'], check['name'].partition(', of ')[0]), []).append(check)
    found = []
    for group in kinds.values():
        largest = max(group, key=lambda check: (not check['passed'], check['figure']))  # NaN is above nothing
        found.append({**largest, 'samples': len(group)})
    return found
