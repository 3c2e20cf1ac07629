"""Makes a network's input of an image, as a description says; needs only NumPy, OpenCV and, for some models, Pillow.

:func:`prepare` is the one way from an image to the input: the export's check, ``tools/predict.py`` and the example for
a server take it.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..utils import UserError
from .description import Crop, Description, Normalize, Pad, PaddedCrop, Resize, Step, ToFloat

Size = typing.Tuple[int, int]  # height, width

CV2_INTERPOLATIONS = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}
CV2_BORDERS = {
    'constant': cv2.BORDER_CONSTANT,
    'edge': cv2.BORDER_REPLICATE,
    'reflect': cv2.BORDER_REFLECT_101,
    'symmetric': cv2.BORDER_REFLECT,
}


@dataclass(frozen=True)
class Prepared:
    """A network's input, and how it lies on the image."""

    image: np.ndarray  # (3, H, W) float32, BGR
    size: Size  # height and width of what the steps returned; the rest is padding
    scale: tuple[float, float]  # x, y: pixels of it for one of the image, by the last resizing
    variant: int  # which of the description's sizes it is for
    reduced: bool = False  # made smaller than the pipeline would: no size of the files holds it


def prepare(image: np.ndarray, description: Description) -> Prepared:
    """Makes the network's input of an image: the steps of the test pipeline, then padding.

    Args:
        image (np.ndarray): BGR (H, W, 3) uint8.
        description (Description): Of the exported model.

    Returns:
        Prepared: The input, for the smallest of the model's sizes that holds it. What no size holds is made smaller; a
        classifier's input is never padded or made smaller.

    Raises:
        UserError: If the image cannot be an input of the model.
    """
    steps = description.input.steps
    frame = frame_size(steps, image.shape[:2])
    variant = choose_size(description.sizes, frame)
    _check_frame(description, frame)
    reduced = bool(description.sizes) and variant is None
    chosen = variant or 0
    if reduced:
        chosen = max(range(len(description.sizes)), key=lambda i: _factor(description.sizes[i], frame))
        steps = reduced_steps(steps, image.shape[:2], frame, description.sizes[chosen])
    found, scale = apply_steps(image, steps)
    if reduced:
        height, width = description.sizes[chosen]
        found = found[:height, :width]  # a step that pads may go beyond
    padded = padded_size(description, found.shape[:2], chosen)
    return Prepared(pad_to(found, padded, description.input.fill), found.shape[:2], scale, chosen, reduced)


def _check_frame(description: Description, frame: Size) -> None:
    """Raises UserError where a classifier would see padding, or a free size is too small."""
    least = description.min_size
    if description.task == 'classification' and description.sizes and list(frame) not in description.sizes:
        listed = ', '.join(f'{height} x {width}' for height, width in description.sizes)
        raise UserError(f'becomes {frame[0]} x {frame[1]} by the test pipeline, but the model takes {listed}')
    if description.dynamic and min(frame) < least:
        raise UserError(f'becomes {frame[0]} x {frame[1]} by the test pipeline; the model takes {least} pixels or more')


def choose_size(sizes: Sequence[Sequence[int]], frame: Size) -> int | None:
    """The index of the smallest size that holds an image of this height and width; None if none does."""
    holding = [i for i, (height, width) in enumerate(sizes) if height >= frame[0] and width >= frame[1]]
    return min(holding, key=lambda i: sizes[i][0] * sizes[i][1]) if holding else None


def _factor(size: Sequence[int], frame: Size) -> float:
    return min(size[0] / frame[0], size[1] / frame[1])


def reduced_steps(steps: Sequence[Step], size: Size, frame: Size, bound: Sequence[int]) -> list[Step]:
    """The steps with a last resizing that fits into a height and width."""
    factor = _factor(bound, frame)
    last = max((i for i, step in enumerate(steps) if isinstance(step, Resize)), default=None)
    before = list(steps[: last or 0])
    height, width = frame_size(steps[: 0 if last is None else last + 1], size)
    target = [float(max(int(width * factor), 1)), float(max(int(height * factor), 1))]
    if last is None:
        return [Resize('scale', target, False, False, 'bilinear', 'cv2'), *steps]
    resize = steps[last]
    assert isinstance(resize, Resize)
    return [*before, Resize('scale', target, False, False, resize.interpolation, resize.backend), *steps[last + 1 :]]


def padded_size(description: Description, size: Size, variant: int = 0) -> Size:
    """Height and width of the network's input for what the steps returned."""
    if description.sizes:
        height, width = description.sizes[variant]
        return height, width
    floor = description.input.pad_size or (1, 1)
    divisor = description.input.pad_divisor
    height, width = (round_up(max(have, least), divisor) for have, least in zip(size, floor))
    return height, width


def round_up(side: float, multiple: float) -> int:
    """The next multiple from ``side`` on."""
    return int(np.ceil(side / multiple)) * int(multiple)


def pad_to(image: np.ndarray, size: Size, fill: Sequence[float]) -> np.ndarray:
    """Turns (h, w, 3) into (3, H, W) float32, padded at its right and bottom."""
    padded = np.empty((3, *size), np.float32)
    padded[:] = np.reshape(fill, (3, 1, 1))
    padded[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return padded


# Steps ---------------------------------------------------------------------------------------------------------------


def frame_size(steps: Sequence[Step], size: Sequence[int]) -> Size:
    """Height and width of what the steps make of an image of this height and width."""
    height, width = size
    for step in steps:
        if isinstance(step, Resize):
            (height, width), _ = resized_size(step, height, width)
        elif isinstance(step, Pad):
            height, width = step_padded_size(step, height, width)
        elif isinstance(step, Crop):
            height, width = min(height, step.size[1]), min(width, step.size[0])
        elif isinstance(step, PaddedCrop):
            height = width = step.size
    return height, width


def apply_steps(image: np.ndarray, steps: Sequence[Step]) -> tuple[np.ndarray, tuple[float, float]]:
    """What the steps make of an image (H, W, 3), and the scale (x, y) of the last resizing."""
    scale = (1.0, 1.0)
    for step in steps:
        if isinstance(step, Resize):
            size, unrounded = resized_size(step, *image.shape[:2])
            if step.rule != 'multiple':  # whose scale the libraries do not note
                scale = unrounded or (size[1] / image.shape[1], size[0] / image.shape[0])
            image = resize(image, size, step.interpolation, step.backend)
        elif isinstance(step, Pad):
            image = _pad(image, step)
        elif isinstance(step, Crop):
            image = _crop(image, step.size)
        elif isinstance(step, PaddedCrop):
            image = _padded_crop(image, step)
        elif isinstance(step, Normalize):
            image = _normalize(image, step)
        elif isinstance(step, ToFloat):
            image = image.astype(np.float32)
    return image, scale


def resized_size(step: Resize, height: int, width: int) -> tuple[Size, tuple[float, float] | None]:
    """Height and width after a resizing, and its scale (x, y) if the library notes another."""
    first, second = step.size[0], step.size[-1]
    unrounded = None
    if step.rule == 'scale':
        new_width, new_height = int(first), int(second)
    elif step.rule == 'factor':
        new_width, new_height = int(width * first + 0.5), int(height * second + 0.5)
    elif step.rule == 'multiple':
        new_width, new_height = round_up(width, first), round_up(height, second)
    elif step.rule == 'fit':
        factor = min(first / width, second / height)
        unrounded = (factor, factor)
        new_width, new_height = int(width * factor + 0.5), int(height * factor + 0.5)
    elif step.rule == 'shortest':
        new_width, new_height = _shortest(height, width, first, second)
    elif _fixes_width(step.rule, height, width):
        new_width, new_height = int(first), int(first * height / width)
    else:
        new_width, new_height = int(first * width / height), int(first)
    if step.keep_ratio:
        bounds = new_width, new_height
        if min(bounds) < 1:
            raise UserError(f'would be resized to {new_height} x {new_width} pixels')
        factor = min(max(bounds) / max(height, width), min(bounds) / min(height, width))
        add = 0.0 if step.round_down else 0.5
        new_width, new_height = int(width * factor + add), int(height * factor + add)
    if min(new_width, new_height) < 1:
        raise UserError(f'would be resized to {new_height} x {new_width} pixels')
    return (new_height, new_width), unrounded


def _shortest(height: int, width: int, short: float, longest: float) -> tuple[int, int]:
    """Width and height whose short side is that, unless the long one exceeded its limit."""
    factor = short / min(height, width)
    new_height, new_width = (short, factor * width) if height < width else (factor * height, short)
    if longest and max(new_height, new_width) > longest:
        factor = longest / max(new_height, new_width)
        new_height, new_width = new_height * factor, new_width * factor
    return int(new_width + 0.5), int(new_height + 0.5)


def _fixes_width(rule: str, height: int, width: int) -> bool:
    return rule == 'width' or (rule == 'short' and width < height) or (rule == 'long' and width > height)


def resize(image: np.ndarray, size: Size, interpolation: str, backend: str) -> np.ndarray:
    """Resizes an image to a height and width, as MMCV does.

    Raises:
        UserError: If Pillow is needed and not installed, or the image has too many pixels.
    """
    shape = (size[1], size[0])
    if backend == 'cv2':
        try:
            return cv2.resize(image, shape, interpolation=CV2_INTERPOLATIONS[interpolation])
        except cv2.error as error:
            raise UserError(f'cannot be resized to {size[0]} x {size[1]} pixels ({error.err or error})') from None
    try:
        from PIL import Image
    except ImportError:
        raise UserError('the test pipeline resizes with Pillow, which is not installed: pip install pillow') from None
    resampling = getattr(Image, 'Resampling', Image)
    return np.array(Image.fromarray(image).resize(shape, getattr(resampling, interpolation.upper())))


def step_padded_size(step: Pad, height: int, width: int) -> Size:
    """Height and width after a padding."""
    if step.size:
        return max(step.size[1], height), max(step.size[0], width)
    if step.square:
        height = width = max(height, width)
    return round_up(height, step.divisor or 1), round_up(width, step.divisor or 1)


def _pad(image: np.ndarray, step: Pad) -> np.ndarray:
    height, width = step_padded_size(step, *image.shape[:2])
    bottom, right = height - image.shape[0], width - image.shape[1]
    return cv2.copyMakeBorder(image, 0, bottom, 0, right, CV2_BORDERS[step.mode], value=step.value)


def _crop(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    width, height = (min(want, have) for want, have in zip(size, (image.shape[1], image.shape[0])))
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def _padded_crop(image: np.ndarray, step: PaddedCrop) -> np.ndarray:
    side = step.size / (step.size + step.padding) * min(image.shape[:2])
    top, left = (max(0, round((have - side) / 2)) for have in image.shape[:2])
    bottom, right = int(top + side - 1), int(left + side - 1)
    cut = image[top : bottom + 1, left : right + 1]
    return resize(cut, (step.size, step.size), step.interpolation, step.backend)


def _normalize(image: np.ndarray, step: Normalize) -> np.ndarray:
    """As MMCV's imnormalize."""
    image = image.astype(np.float32)
    if step.to_rgb:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    mean, factor = (np.float64(np.reshape(value, (1, 3))) for value in (step.mean, 1 / np.float64(step.std)))
    return cv2.multiply(cv2.subtract(image, mean), factor)
