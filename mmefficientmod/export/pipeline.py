"""Reads a config's test pipeline into the steps of a description; other steps are refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope

from ..codebases.config import find_test_pipeline
from ..codebases.nodes import is_known, type_name
from ..utils import UserError, describe_error
from .description import BACKENDS, Crop, Normalize, Pad, PaddedCrop, Resize, Step, ToFloat
from .inputs import Size, frame_size, round_up

PACKAGES = ('mmcv', 'mmdet', 'mmpretrain', 'mmseg')  # whose transforms are known
# Steps that read annotations or pack the sample do nothing to an image that is predicted on.
NO_IMAGE_STEP = re.compile(r'Load\w*Annotations?|Pack\w+')
LOADERS = ('LoadImageFromFile', 'LoadImageFromNDArray')


def read_steps(config: Config, scope: str) -> list[Step]:
    """The steps of a config's test pipeline, as far as they change the image.

    The library's own classes are built, so that their defaults count.

    Args:
        config (Config): The config.
        scope (str): The codebase whose registry names the steps.

    Raises:
        UserError: If a step is not known, or depends on chance, with its name.
    """
    steps: list[Step] = []
    with DefaultScope.overwrite_default_scope(scope):
        for settings in find_test_pipeline(config):
            steps += _read_step(settings)
    if ToFloat() in steps and any(getattr(step, 'backend', '') == 'pillow' for step in steps):
        raise refuse('LoadImageFromFile', 'reads float32 images, which a later step resizes with Pillow')
    return steps


def _read_step(settings: Mapping) -> list[Step]:
    name = type_name(settings)
    if is_known(settings, PACKAGES) and NO_IMAGE_STEP.fullmatch(name):
        return []
    try:
        transform = TRANSFORMS.build(settings)
    except Exception as error:  # whatever a transform raises about its settings
        reason = describe_error(error)
        raise UserError(f'the step {name} of the test pipeline cannot be built ({reason})') from error
    cls = type(transform)
    if cls.__module__.partition('.')[0] in PACKAGES and cls.__name__ in READERS:
        return READERS[cls.__name__](transform)
    known = ', '.join(name for name in READERS if not name.startswith(('Load', 'Inferencer')))
    raise refuse(cls.__name__, f'is not known. Known are {known}')


def refuse(name: str, reason: str) -> UserError:
    """The error for a step that cannot be a part of an exported model."""
    return UserError(f'the step {name} of the test pipeline cannot be exported: it {reason}')


def check_loading(name: str, settings: Mapping) -> None:
    """Raises UserError for a step that reads images otherwise than :func:`.images.read_image`."""
    for key, known in (('color_type', ('color',)), ('imdecode_backend', ('cv2', 'pillow', None))):
        found = settings.get(key, known[0])
        if found not in known:
            raise UserError(
                f'the step {name} of the test pipeline has {key}={found!r}: predictions are made of upright images in '
                f'colour, which {key}={known[0]!r} reads'
            )


def _load(step: Any) -> list[Step]:
    check_loading(type(step).__name__, vars(step))
    return [ToFloat()] if step.to_float32 else []


def _resize(step: Any, rule: str, size: Any, keep_ratio: bool = False, down: bool = False) -> list[Step]:
    backend, interpolation = step.backend or 'cv2', step.interpolation
    if interpolation not in BACKENDS.get(backend, ()):
        raise refuse(type(step).__name__, f'resizes with backend={backend!r}, interpolation={interpolation!r}')
    return [Resize(rule, [float(value) for value in size], bool(keep_ratio), down, interpolation, backend)]


def _scale(step: Any) -> list[Step]:
    rule, size = ('scale', step.scale) if step.scale else ('factor', step.scale_factor)
    return _resize(step, rule, size, step.keep_ratio, type(step).__name__ == 'FixScaleResize')


def _shortest(step: Any) -> list[Step]:
    short = min(step.scale) if isinstance(step.scale, tuple) else step.scale
    (inner,) = _scale(step.resize)  # made by the step itself
    assert isinstance(inner, Resize)
    size = (short, step.max_size or 0)
    return _resize(step.resize, 'shortest', size, inner.keep_ratio, inner.round_down)


def _fix_shape(step: Any) -> list[Step]:
    if not step.keep_ratio:
        return _resize(step, 'scale', step.scale)
    return [*_resize(step, 'fit', step.scale, True), *_pad(step.pad_transform)]


def _multiple(step: Any) -> list[Step]:
    divisor = step.size_divisor if isinstance(step.size_divisor, (tuple, list)) else (step.size_divisor,) * 2
    interpolation = step.interpolation or 'bilinear'
    if interpolation not in BACKENDS['cv2']:
        raise refuse('ResizeToMultiple', f'resizes with interpolation={interpolation!r}')
    return [Resize('multiple', [float(value) for value in divisor], False, False, interpolation, 'cv2')]


def _pad(step: Any) -> list[Step]:
    value = step.pad_val.get('img', 0)
    value = [float(each) for each in (value if isinstance(value, (tuple, list)) else (value,) * 3)]
    if len(value) != 3:
        raise refuse('Pad', f'pads {len(value)} channels; models take three')
    return [Pad(step.size and list(step.size), step.size_divisor, step.pad_to_square, value, step.padding_mode)]


def _crop(step: Any) -> list[Step]:
    if step.auto_pad:
        raise refuse('CenterCrop', 'pads images of its own accord (auto_pad=True): put Pad before it instead')
    return [Crop(list(step.crop_size))]


def _padded_crop(step: Any) -> list[Step]:
    if step.interpolation not in BACKENDS.get(step.backend, ()):
        raise refuse(type(step).__name__, f'resizes with backend={step.backend!r}, {step.interpolation!r}')
    return [PaddedCrop(step.crop_size, step.crop_padding, step.interpolation, step.backend)]


def _normalize(step: Any) -> list[Step]:
    mean, std = ([float(value) for value in each] for each in (step.mean, step.std))
    if len(mean) != 3 or len(std) != 3:
        raise refuse('Normalize', 'has not three values for the channels')
    return [Normalize(mean, std, bool(step.to_rgb))]


def _flip(step: Any) -> list[Step]:
    chances = step.prob if isinstance(step.prob, (tuple, list)) else [step.prob]
    if any(chances):
        raise refuse('RandomFlip', 'depends on chance')
    return []


READERS: dict[str, Callable[[Any], list[Step]]] = {
    **dict.fromkeys(LOADERS, _load),
    'InferencerLoader': lambda step: _load(step.from_file),
    'Resize': _scale,
    'FixScaleResize': _scale,
    'FixShapeResize': _fix_shape,
    'ResizeShortestEdge': _shortest,
    'ResizeEdge': lambda step: _resize(step, step.edge, (step.scale,)),
    'ResizeToMultiple': _multiple,
    'Pad': _pad,
    'CenterCrop': _crop,
    'EfficientNetCenterCrop': _padded_crop,
    'Normalize': _normalize,
    'RandomFlip': _flip,
}


def keeps_ratio(steps: list[Step]) -> bool:
    """Whether what the steps make of a portrait image is portrait, and of a landscape image landscape."""
    tall, wide = (frame_size(steps, size) for size in ((1200, 800), (800, 1200)))
    return tall[0] > tall[1] and wide[0] < wide[1]


def natural_sizes(steps: list[Step], divisor: int) -> list[Size]:
    """The heights and widths that hold what the steps make of any image: one, or two where they keep the ratio.

    Empty where the result depends on the image's number of pixels or has no bound.
    """
    ratios = [1.25**i for i in range(14)]  # up to 1 : 18
    bounds: list[Size] = []
    for tall in (False, True):
        found = set()
        for side in (900, 2400):
            sizes = [(int(side * ratio), side) if tall else (side, int(side * ratio)) for ratio in ratios]
            frames = [frame_size(steps, size) for size in sizes]
            found.add(tuple(round_up(max(each), divisor) for each in zip(*frames)))
        height, width = max(found)
        if len(found) > 1 or max(height, width) > 12 * min(height, width):
            return []
        bounds.append((height, width))
    return list(dict.fromkeys(bounds))
