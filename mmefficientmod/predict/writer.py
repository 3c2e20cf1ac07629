"""Writes predictions: pictures and videos they are drawn on, ``predictions.json``, class maps."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import PredictError
from .drawing import draw, make_palette
from .results import Classification, Detections, Result, Segmentation, encode
from .sources import Source

# COCO numbers its 80 classes from 1 to 90 with gaps, and its evaluation asks for these numbers.
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_ENDS = 'person', 'toothbrush'  # the first and the last of its classes
WRITTEN_AS_READ = '.jpg', '.jpeg', '.png', '.bmp', '.webp'


class Writer:
    """Takes predictions in the order of the sources; :meth:`close` makes the files complete.

    Args:
        out (Path): The folder: ``pictures/``, ``classes/`` and ``predictions.json`` in it.
        sources (Sequence[Source]): What is predicted on.
        classes (Sequence[str]): Names of the classes.
        palette (object): Their colours in RGB; without as many of them, colours are chosen.
        pictures (bool): Write pictures and videos. Defaults to True.

    Raises:
        OSError: Here or later, if a file cannot be written.
    """

    def __init__(
        self, out: Path, sources: Sequence[Source], classes: Sequence[str], palette: object, pictures: bool = True
    ) -> None:
        self.out, self.classes, self.pictures = out, list(classes), pictures
        self.palette = make_palette(palette, len(self.classes))
        self.category_ids = category_ids(self.classes)
        self.image_ids = image_ids(sources)
        self.map_names = map_names(sources)
        self.objects = 0
        self._count = 0
        self._video: tuple[Source, cv2.VideoWriter, Path] | None = None
        out.mkdir(parents=True, exist_ok=True)
        self._draft = out / '.predictions.json'
        self._file = open(self._draft, 'w', encoding='utf-8')  # noqa: SIM115 - closed by close()
        self._file.write('[')
        self._first = True

    def add(self, source: Source, frame: int | None, fps: float, image: np.ndarray, result: Result) -> None:
        """Writes the prediction on a picture, or on the frame of that number of a video."""
        self._count += 1
        record: dict[str, Any] = dict(file_name=source.name)
        if frame is not None:
            record['frame'] = frame
        if isinstance(result, Detections):
            self.objects += len(result.scores)
            image_id = self.image_ids[source] if self.image_ids and frame is None else self._count
            for i in range(len(result.scores)):
                self._write(dict(image_id=image_id, **record, **self._object(result, i, image.shape[:2])))
        elif isinstance(result, Segmentation):
            self._write({**record, **self._class_map(source, frame, result)})
        else:
            self._write({**record, **self._ranking(result)})
        if self.pictures:
            drawn = draw(image, result, self.classes, self.palette)
            if frame is None:
                self._write_picture(source, drawn)
            else:
                self._write_frame(source, fps, drawn)

    def close(self) -> None:
        """Completes what was begun."""
        self._end_video()
        self._file.write('\n]\n')
        self._file.close()
        os.replace(self._draft, self.out / 'predictions.json')

    def discard(self) -> None:
        """Removes what is not complete; after :meth:`close` there is nothing."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._draft.unlink()
        if self._video:
            _, video, draft = self._video
            video.release()
            with suppress(OSError):
                draft.unlink()

    def _write(self, record: dict) -> None:
        self._file.write(('\n' if self._first else ',\n') + json.dumps(record))
        self._first = False

    def _object(self, result: Detections, i: int, size: tuple[int, int]) -> dict:
        """One entry of COCO's result format."""
        left, top, right, bottom = (float(value) for value in result.boxes[i])
        label = int(result.labels[i])
        entry = dict(
            category_id=self.category_ids[label],
            category=self.classes[label],
            bbox=[round(value, 3) for value in (left, top, right - left, bottom - top)],
            score=round(float(result.scores[i]), 6),
        )
        if result.masks is not None:
            entry['segmentation'] = encode(result.masks[i], *size)
        return entry

    def _class_map(self, source: Source, frame: int | None, result: Segmentation) -> dict:
        name = self.map_names[source] + ('.png' if frame is None else f'/{frame:06}.png')
        _save(self.out / 'classes' / name, result.classes)
        height, width = result.classes.shape
        labels, counts = np.unique(result.classes, return_counts=True)
        shares = {self.classes[label]: round(count / result.classes.size, 6) for label, count in zip(labels, counts)}
        return dict(classes=f'classes/{name}', height=height, width=width, shares=shares)

    def _ranking(self, result: Classification) -> dict:
        order = np.argsort(-result.scores, kind='stable')[:5].tolist()
        best = [[self.classes[label], round(float(result.scores[label]), 6)] for label in order]
        return {'label': order[0], 'class': best[0][0], 'score': best[0][1], 'top5': best}

    def _write_picture(self, source: Source, image: np.ndarray) -> None:
        as_read = source.path.suffix.lower() in WRITTEN_AS_READ
        _save(self.out / 'pictures' / (source.name if as_read else f'{source.name}.png'), image)

    def _write_frame(self, source: Source, fps: float, image: np.ndarray) -> None:
        if self._video is None or self._video[0] != source:
            self._end_video()
            path = self._video_path(source)
            draft = path.with_name(f'.{path.name}')
            path.parent.mkdir(parents=True, exist_ok=True)
            video = cv2.VideoWriter(str(draft), cv2.VideoWriter_fourcc(*'mp4v'), fps, image.shape[1::-1])
            if not video.isOpened():
                raise PredictError(f'OpenCV cannot write {path}: leave pictures and videos out by --no-pictures')
            self._video = source, video, draft
        self._video[1].write(image)

    def _video_path(self, source: Source) -> Path:
        name = source.name if source.path.suffix.lower() == '.mp4' else f'{source.name}.mp4'
        return self.out / 'pictures' / name

    def _end_video(self) -> None:
        if self._video:
            source, video, draft = self._video
            video.release()
            os.replace(draft, self._video_path(source))
            self._video = None


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def category_ids(classes: Sequence[str]) -> list[int]:
    """COCO's own numbers for its 80 classes, else 1, 2, 3, ..."""
    is_coco = len(classes) == 80 and (classes[0], classes[-1]) == COCO_ENDS
    return [i for i in range(1, 91) if i not in COCO_GAPS] if is_coco else list(range(1, len(classes) + 1))


def image_ids(sources: Sequence[Source]) -> dict[Source, int]:
    """The numbers that the files are named by, as COCO's are; empty where not every picture has its own."""
    stems = [source.path.stem for source in sources]
    if any(source.is_video for source in sources) or not all(stem.isdecimal() for stem in stems):
        return {}
    ids = {source: int(stem) for source, stem in zip(sources, stems)}
    return ids if len(set(ids.values())) == len(sources) else {}


def map_names(sources: Sequence[Source]) -> dict[Source, str]:
    """What class maps are named by: the source without its suffix, or with it where two would be the same."""
    stems = [source.name[: len(source.name) - len(source.path.suffix)] for source in sources]
    return {source: stem if stems.count(stem) == 1 else source.name for source, stem in zip(sources, stems)}
