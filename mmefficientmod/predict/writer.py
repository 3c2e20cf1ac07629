"""Writes predictions: images and videos they are drawn on, ``predictions.json``, class maps."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.canvas import drawable
from ..export.results import Classification, Detections, Result, Segmentation, encode
from ..utils import UserError, is_utf8, replace_file
from .annotations import Ids
from .drawing import draw, make_palette
from .sources import Source

# COCO numbers its 80 classes from 1 to 90 with gaps, and its evaluation asks for these numbers.
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_ENDS = 'person', 'toothbrush'  # the first and the last of its classes
WRITTEN_AS_READ = '.jpg', '.jpeg', '.png', '.bmp', '.webp', '.mp4'
HIGHEST_RATE = 600  # frames a second; what some files say beyond it is the unit of their times


class NotDrawn(UserError):
    """A video that cannot be drawn on; its predictions are written."""


class Writer:
    """Takes predictions in the order of the sources; :meth:`close` makes the files complete.

    Args:
        out (Path): The folder: ``images/``, ``classes/`` and ``predictions.json`` in it.
        sources (Sequence[Source]): What is predicted on.
        classes (Sequence[str]): Names of the classes.
        palette (object): Their colours in RGB; without as many of them, colours are chosen.
        draws (bool): Write images and videos with the predictions. Defaults to True.
        ids (Ids, optional): Ids of images and categories. Defaults to None, those of COCO where the names are COCO's.

    Raises:
        OSError: Here or later, if a file cannot be written.
    """

    def __init__(
        self,
        out: Path,
        sources: Sequence[Source],
        classes: Sequence[str],
        palette: object,
        draws: bool = True,
        ids: Ids | None = None,
    ) -> None:
        if draws and not is_utf8(out) and any(source.is_video for source in sources):
            raise UserError(f'{out} is not a name in UTF-8, under which OpenCV writes no video: choose another --out')
        self.out, self.sources, self.classes, self.draws = out, sources, list(classes), draws
        self.palette = make_palette(palette, len(self.classes))
        self.category_ids: list[Any] = ids.categories if ids else category_ids(self.classes)
        self.image_ids = ids.images if ids else image_ids(sources)
        self._given = ids is not None
        self.objects = 0
        self._count = 0
        self._video: tuple[Source, cv2.VideoWriter, Path] | None = None
        self._frames = 0  # in the video that is being written
        self._refused: set[Source] = set()  # videos that OpenCV does not write
        out.mkdir(parents=True, exist_ok=True)
        self._draft = out / '.predictions.json'
        self._file = open(self._draft, 'w', encoding='utf-8')  # noqa: SIM115 - closed by close()
        self._file.write('[')
        self._first = True

    def add(self, source: Source, frame: int | None, fps: float, image: np.ndarray, result: Result) -> None:
        """Writes the prediction on an image, or on the frame of that number of a video.

        Raises:
            NotDrawn: Once, if a video cannot be drawn on; its predictions are written.
            UserError: With the first, if two sources would be written to the same file.
        """
        self._count += 1
        self._name(result)
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
        if self.draws:
            drawn = draw(image, result, self.drawn_classes, self.palette)
            if frame is None:
                self._write_image(source, drawn)
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

    @property
    def drawn_classes(self) -> list[str]:
        """The names of the classes as they are drawn."""
        return [drawable(name, number) for number, name in enumerate(self.classes)]

    @cached_property
    def _map_names(self) -> dict[Source, str]:
        return map_names(self.sources)

    @cached_property
    def _drawn_names(self) -> dict[Source, str]:
        return drawn_names(self.sources)

    def _drawn_path(self, source: Source) -> Path:
        return self.out / 'images' / self._drawn_names[source]

    def _name(self, result: Result) -> None:
        """Calls classes by their numbers that the model has beyond those with names."""
        if isinstance(result, Classification):
            count = len(result.scores)
        else:
            labels = result.labels if isinstance(result, Detections) else result.classes
            count = int(labels.max()) + 1 if labels.size else 0
        known = len(self.classes)
        if count > known and self._given:
            raise UserError(f'the model has a class {known} without a name: --annotations gives no id for it')
        if count > known:
            self.classes += map(str, range(known, count))
            self.category_ids += range(known + 1, count + 1)
            self.palette += make_palette(None, count)[len(self.palette) :]

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
        name = self._map_names[source] + ('.png' if frame is None else f'/{frame:06}.png')
        _save(self.out / 'classes' / name, result.classes)
        height, width = result.classes.shape
        labels, counts = np.unique(result.classes, return_counts=True)
        shares = {self.classes[label]: round(count / result.classes.size, 6) for label, count in zip(labels, counts)}
        return dict(classes=f'classes/{name}', height=height, width=width, shares=shares)

    def _ranking(self, result: Classification) -> dict:
        order = np.argsort(-result.scores, kind='stable')[:5].tolist()
        best = [[self.classes[label], round(float(result.scores[label]), 6)] for label in order]
        return {'label': order[0], 'class': best[0][0], 'score': best[0][1], 'top5': best}

    def _write_image(self, source: Source, image: np.ndarray) -> None:
        _save(self._drawn_path(source), image)

    def _write_frame(self, source: Source, fps: float, image: np.ndarray) -> None:
        if source in self._refused:
            return
        if self._video is None or self._video[0] != source:
            self._end_video()
            path = self._drawn_path(source)
            draft = path.with_name(f'.{path.name}')
            path.parent.mkdir(parents=True, exist_ok=True)
            rate = min(round(fps, 2), HIGHEST_RATE)  # MPEG-4 takes no finer one
            video = cv2.VideoWriter(str(draft), cv2.VideoWriter_fourcc(*'mp4v'), rate, image.shape[1::-1])
            if not video.isOpened():
                self._refused.add(source)
                with suppress(OSError):
                    draft.unlink()
                height, width = image.shape[:2]
                raise NotDrawn(f'is predicted on but not drawn: OpenCV writes no video of {width} x {height} pixels')
            self._video, self._frames = (source, video, draft), 0
        self._video[1].write(image)
        self._frames += 1

    def _end_video(self) -> None:
        if self._video:
            source, video, draft = self._video
            video.release()
            path = self._drawn_path(source)
            if cv2.VideoCapture(str(draft)).get(cv2.CAP_PROP_FRAME_COUNT) != self._frames:  # OpenCV tells of no error
                raise OSError(f'{path} cannot be written whole: is the disk full?')
            os.replace(draft, path)
            self._video = None


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, cv2.imencode(path.suffix, image)[1].tobytes(), durable=False)


def category_ids(classes: Sequence[str]) -> list[int]:
    """COCO's own numbers for its 80 classes, else 1, 2, 3, ..."""
    is_coco = len(classes) == 80 and (classes[0], classes[-1]) == COCO_ENDS
    return [i for i in range(1, 91) if i not in COCO_GAPS] if is_coco else list(range(1, len(classes) + 1))


def image_ids(sources: Sequence[Source]) -> dict[Source, int]:
    """The numbers that the files are named by, as COCO's are; empty where not every image has its own."""
    stems = [source.path.stem for source in sources]
    if any(source.is_video for source in sources) or not all(stem.isdecimal() for stem in stems):
        return {}
    ids = {source: int(stem) for source, stem in zip(sources, stems)}
    return ids if len(set(ids.values())) == len(sources) else {}


def map_names(sources: Sequence[Source]) -> dict[Source, str]:
    """What class maps are named by: an image without its suffix, unless two would be the same; a video with it."""
    stems = [source.name[: len(source.name) - len(source.path.suffix)] for source in sources]
    counts = Counter(stems)
    names = (source.name if source.is_video or counts[stem] > 1 else stem for source, stem in zip(sources, stems))
    return _check_distinct(dict(zip(sources, names)))


def drawn_names(sources: Sequence[Source]) -> dict[Source, str]:
    """What images and videos with predictions are named by; formats that are only read become PNG or MP4."""

    def name(source: Source) -> str:
        ending = '' if source.path.suffix.lower() in WRITTEN_AS_READ else '.mp4' if source.is_video else '.png'
        return source.name + ending

    return _check_distinct({source: name(source) for source in sources})


def _check_distinct(names: dict[Source, str]) -> dict[Source, str]:
    used: dict[str, Source] = {}
    for source, name in names.items():
        other = used.setdefault(name, source)
        if other != source:
            raise UserError(f'{other} and {source} would both be written to {name}: predict on them apart')
    return names
