"""Predicts by an exported folder: NumPy, OpenCV and the runtime of its file, neither torch nor an MM library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ..export.description import Description
from ..export.formats import Session
from ..utils import UserError
from .results import Detections, Result, Segmentation, paste_mask


class ExportedModel:
    """A detector or segmentor that ``tools/export.py`` wrote.

    Args:
        folder (Path): With ``export.json`` in it.
        device (str, optional): The CPU is the only one.
        score_thr (float): The least score of an object. Defaults to 0.3.
        format (str, optional): Which of its files to use. Defaults to the first whose runtime is installed.

    Raises:
        UserError: With one line, if it cannot be used.
    """

    mixed_sizes = False

    def __init__(
        self, folder: Path, device: str | None = None, score_thr: float = 0.3, format: str | None = None
    ) -> None:
        if device not in (None, 'cpu'):
            raise UserError(f'--device {device}: exported files run on the CPU here; leave the option out')
        try:
            self._session = Session(folder.parent if folder.name == 'export.json' else folder, format)
        except UserError as error:
            raise UserError(str(error)) from error
        self.description = self._session.description
        self.task = self.description.task
        if self.task not in ('detection', 'segmentation'):
            raise UserError(f'{folder} holds a {self.task}, for which there is no prediction: a detector or segmentor')
        self.score_thr = score_thr
        self.classes = self.description.classes
        self.palette = self.description.palette

    def predict(self, images: list[np.ndarray]) -> list[Result]:
        """The results on pictures of one size, BGR (H, W, 3) uint8."""
        size = images[0].shape[:2]
        picture = self.description.fit(*size)
        inputs = [prepare(image, self.description) for image in images]
        step = self.description.size['batch'] or len(inputs)
        results: list[Result] = []
        for i in range(0, len(inputs), step):
            batch = inputs[i : i + step]
            full = batch + batch[-1:] * (step - len(batch))  # a fixed batch is always whole
            outputs = self._session.run(np.stack(full), picture)
            for j in range(len(batch)):
                results.append(self._result(outputs, j, size, picture))
        return results

    def _result(
        self, outputs: Mapping[str, np.ndarray], i: int, size: tuple[int, int], picture: tuple[int, int]
    ) -> Result:
        if self.task == 'detection':
            return detections(outputs, size, picture, self.score_thr, self.description.mask_thr)
        kind = np.uint8 if outputs['logits'].shape[1] <= 256 else np.uint16
        height, width = picture
        if size == picture:
            classes = outputs['classes'][i, :height, :width]
        else:
            inner = outputs['classes'].shape[1:]
            classes = resized_classes(outputs['logits'][i], inner, picture, size, self.description.align_corners)
        return Segmentation(np.ascontiguousarray(classes, kind))


def prepare(image: np.ndarray, description: Description) -> np.ndarray:
    """A picture (H, W, 3) uint8, BGR, as the file takes it: (3, H', W') float32, resized and padded."""
    height, width = description.fit(*image.shape[:2])
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if description.input['color'] == 'RGB':
        image = image[..., ::-1]
    padded = np.empty((3, *description.padded(height, width)), np.float32)
    padded[:] = np.reshape(description.input['fill'], (3, 1, 1))
    padded[:, :height, :width] = image.transpose(2, 0, 1)
    return padded


def detections(
    outputs: Mapping[str, np.ndarray],
    size: tuple[int, int],
    picture: tuple[int, int],
    score_thr: float,
    mask_thr: float | None,
) -> Detections:
    """The objects in a picture of ``size`` (height, width) that was resized to ``picture``."""
    scores = outputs['scores']
    rows = np.flatnonzero((scores >= score_thr) & (scores > 0))  # rows that are not used have score 0
    scale = np.array([size[1] / picture[1], size[0] / picture[0]] * 2, np.float32)
    boxes = outputs['boxes'][rows] * scale
    masks = None
    if 'masks' in outputs:
        threshold = 0.5 if mask_thr is None else mask_thr
        masks = [paste_mask(mask, box, *size, threshold) for mask, box in zip(outputs['masks'][rows], boxes)]
    return Detections(boxes, scores[rows], outputs['labels'][rows], masks)


def resized_classes(
    logits: np.ndarray, inner: tuple[int, ...], picture: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> np.ndarray:
    """The classes (H, W) at the picture's own size, from logits of the head.

    As in MMSegmentation: resized to the network's input, cut to what is no padding, resized to the picture.

    Args:
        logits (np.ndarray): (classes, h, w).
        inner (tuple[int, int]): Height and width of the network's input.
        picture (tuple[int, int]): Those of the part that is no padding.
        size (tuple[int, int]): Those of the picture.
        align_corners (bool): Of the resizing.
    """
    best = np.full(size, -np.inf, np.float32)
    classes = np.zeros(size, np.uint16)
    for label, logit in enumerate(logits):  # one after another: all of them at full size may not fit into memory
        whole = _resize(logit, inner, align_corners)[: picture[0], : picture[1]]
        value = _resize(whole, size, align_corners)
        better = value > best
        best[better] = value[better]
        classes[better] = label
    return classes


def _resize(image: np.ndarray, size: tuple[int, ...], align_corners: bool) -> np.ndarray:
    """Resizes (h, w) bilinearly, without smoothing, as torch does."""
    if not align_corners:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    rows, columns = (_weights(new, old) for new, old in zip(size, image.shape))
    return rows @ image @ columns.T


def _weights(new: int, old: int) -> np.ndarray:
    """What each of ``old`` points adds to each of ``new`` ones, first on first and last on last: (new, old)."""
    places = np.linspace(0, old - 1, new)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(old)), 0).astype(np.float32)
