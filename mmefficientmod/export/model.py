"""Predicts with an exported folder: needs NumPy, OpenCV and a runtime, neither torch nor an MM library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Callable, Mapping

import numpy as np

from ..utils import UserError
from .description import Description
from .formats import Session
from .inputs import Prepared, prepare
from .results import Classification, Result, Segmentation, Window, detections, merge_windows, slide_windows

Outputs = Mapping[str, np.ndarray]
Run = Callable[[np.ndarray, 'tuple[int, int]'], Outputs]  # image (B, 3, H, W), valid size -> outputs


class ExportedModel:
    """A detector, segmentor or classifier that ``tools/export.py`` wrote.

    Args:
        description (Description): Its ``export.json``.
        run (Callable): One pass of its file: takes the input (B, 3, H, W) and the height and width in it that are no
            padding, and returns the outputs by name.
        score_thr (float): The minimum score of a detection. Defaults to 0.3.
        max_per_img (int, optional): The most detections in an image. Defaults to those in the file's outputs.

    Raises:
        UserError: If it holds a backbone, which predicts nothing, or fewer detections than are asked for.
    """

    mixed_sizes = True

    def __init__(
        self, description: Description, run: Run, score_thr: float = 0.3, max_per_img: int | None = None
    ) -> None:
        self.description, self._run, self.score_thr = description, run, score_thr
        self.max_per_img = max_per_img or description.max_per_img
        self._reduced = self._padded = self._crowded = 0
        self._chosen: list[str] = []
        self.task, self.classes, self.palette = description.task, description.classes, description.palette
        if self.task == 'backbone':
            raise UserError('the folder holds a backbone, which predicts nothing: export the whole model')
        bound = description.max_per_img
        if bound and max_per_img and max_per_img > bound:
            raise UserError(
                f'--max-per-img {max_per_img}: the model was exported with {bound}; export it again with --cfg-options'
            )

    @classmethod
    def open(
        cls, folder: Path, score_thr: float = 0.3, format: str | None = None, max_per_img: int | None = None
    ) -> ExportedModel:
        """Opens a folder.

        Args:
            folder (Path): With ``export.json`` in it, or that file.
            score_thr (float): The minimum score of a detection. Defaults to 0.3.
            format (str, optional): Which of its files to use. Defaults to the first whose runtime is installed.
            max_per_img (int, optional): The most detections in an image. Defaults to those in the file's outputs.

        Raises:
            UserError: With one line, if it cannot be used.
        """
        session = Session(folder.parent if folder.name == 'export.json' else folder, format)
        model = cls(session.description, session.run, score_thr, max_per_img)
        model._chosen = session.notes
        return model

    @property
    def notes(self) -> list[str]:
        """What a user should know of the predictions so far."""
        sizes, found = ' and '.join(f'{height} x {width}' for height, width in self.description.sizes), []
        found += self._chosen
        if self._reduced:
            found.append(
                f'{self._reduced} images were made smaller than the test pipeline makes them, to fit into {sizes}: '
                'export with a --size that holds them'
            )
        if self._padded and sizes and self.task == 'segmentation':
            found.append(
                f'{self._padded} images were padded to {sizes}, which changes classes near the padding: export with '
                'free sizes'
            )
        if self._crowded:
            found.append(f'{self._crowded} images have more objects than the file looks at: some may be missing')
        return found

    def predict(self, images: list[np.ndarray]) -> list[Result]:
        """Predicts on images, BGR (H, W, 3) uint8.

        Raises:
            UserError: If an image cannot be an input of the model.
        """
        prepared = [prepare(image, self.description) for image in images]
        self._reduced += sum(each.reduced for each in prepared)
        self._padded += sum(each.size != each.image.shape[1:] for each in prepared)
        slides = self.description.slide is not None
        results: list[Result] = []
        for _, group in groupby(range(len(images)), key=lambda i: i if slides else prepared[i].image.shape):
            members = list(group)
            if slides:
                (i,) = members
                results.append(self._slide(prepared[i], images[i].shape[:2]))
                continue
            passes = self._passes([prepared[i].image for i in members], [prepared[i].size for i in members])
            results += (self.result(outputs, prepared[i], images[i].shape[:2]) for i, outputs in zip(members, passes))
        return results

    def _passes(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Iterator[Outputs]:
        """Runs inputs of one shape (3, H, W) in batches; the outputs of each, with a batch of 1 but for detectors."""
        step = self.description.batch or (1 if self.description.slide else len(inputs))
        for i in range(0, len(inputs), step):
            batch = list(inputs[i : i + step])
            full = batch + batch[-1:] * (step - len(batch))  # a fixed batch is always complete
            outputs = self._run(np.stack(full), sizes[i])
            for j in range(len(batch)):
                yield outputs if self.task == 'detection' else {k: v[j : j + 1] for k, v in outputs.items()}

    def result(self, outputs: Outputs, prepared: Prepared, size: tuple[int, int]) -> Result:
        """The prediction on an image of a height and width, of the outputs for its prepared form."""
        description = self.description
        if self.task == 'detection':
            self._crowded += int(outputs.get('left_out', 0)) > 0
            if self.max_per_img:
                kept = outputs['scores'].argsort(kind='stable')[::-1][: self.max_per_img]
                outputs = {name: value[kept] if np.ndim(value) else value for name, value in outputs.items()}
            return detections(outputs, prepared, size, self.score_thr, description.mask_thr)
        if self.task == 'classification':
            return Classification(outputs['scores'][0])
        height, width = prepared.size
        if size == prepared.size:
            kind = np.uint8 if outputs['logits'].shape[1] <= 256 else np.uint16
            return Segmentation(np.ascontiguousarray(outputs['classes'][0, :height, :width], kind))
        inner = outputs['classes'].shape[1:]
        window = Window(0, 0, inner, outputs['logits'][0])
        return Segmentation(merge_windows([window], inner, prepared.size, size, description.align_corners))

    def _slide(self, prepared: Prepared, size: tuple[int, int]) -> Segmentation:
        """The classes of a segmentor that works in windows."""
        assert self.description.slide
        inner = prepared.image.shape[1:]
        places = slide_windows(self.description.slide, inner)
        parts = [prepared.image[:, top : top + h, left : left + w] for top, left, (h, w) in places]
        passes = self._passes(parts, [place[2] for place in places])
        windows = [Window(*place, outputs['logits'][0]) for place, outputs in zip(places, passes)]
        return Segmentation(merge_windows(windows, inner, prepared.size, size, self.description.align_corners))
