"""Predicts on many pictures and videos: batches them, writes results, counts what cannot be read."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ..export.inputs import read_picture
from ..utils import UserError
from .annotations import read_ids
from .results import Result
from .sources import Source, Video
from .writer import Writer


class Model(Protocol):
    """What predicts."""

    task: str  # 'detection', 'segmentation' or 'classification'
    classes: Sequence[str]
    palette: object  # colours of the classes in RGB, or anything else where there are none
    mixed_sizes: bool  # whether the pictures of a batch may differ in size

    def predict(self, images: list[np.ndarray]) -> list[Result]:
        """The results on pictures, BGR (H, W, 3) uint8."""


@dataclass
class Item:
    """A picture, or a frame of a video."""

    source: Source
    frame: int | None
    fps: float
    image: np.ndarray


@dataclass
class Summary:
    """What was done."""

    images: int = 0
    objects: int | None = None  # found, in detection
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0  # from reading to writing
    model_seconds: float = 0.0
    stopped: bool = False

    def __str__(self) -> str:
        found = '' if self.objects is None else f', {self.objects} objects'
        failed = f', {len(self.failures)} failed' if self.failures else ''
        speed = f'{self.images / self.seconds:.1f} images a second' if self.images else 'no image'
        alone = f' ({self.images / self.model_seconds:.1f} without reading and writing)' if self.images else ''
        end = '; stopped' if self.stopped else ''
        count = f'{self.images} image{"" if self.images == 1 else "s"}'
        return f'{count}{found}{failed} in {self.seconds:.1f} s: {speed}{alone}{end}'


def run(
    model: Model,
    sources: Sequence[Source],
    out: Path,
    batch_size: int = 1,
    pictures: bool = True,
    annotations: Path | None = None,
) -> Summary:
    """Predicts on all sources and writes the results; one that cannot be read is named and left out.

    Args:
        model (Model): What predicts.
        sources (Sequence[Source]): Pictures and videos.
        out (Path): Folder of the results.
        batch_size (int): Pictures at a time. Defaults to 1.
        pictures (bool): Write pictures and videos. Defaults to True.
        annotations (Path, optional): COCO JSON with the ids of the images and categories. Defaults to None.

    Raises:
        UserError: If two sources would be written to the same file, or if ``annotations`` lacks an id.
        OSError: If a result cannot be written.
    """
    if annotations and model.task != 'detection':
        raise UserError(f'--annotations {annotations} numbers objects, but the model is for {model.task}: leave it out')
    ids = read_ids(annotations, sources, model.classes) if annotations else None
    summary, progress = Summary(), Progress(len(sources))
    writer = Writer(out, sources, model.classes, model.palette, pictures, ids)
    start = time.perf_counter()
    try:
        for batch in _batches(_items(sources, summary, progress), batch_size, model.mixed_sizes):
            begin = time.perf_counter()
            results = model.predict([item.image for item in batch])
            summary.model_seconds += time.perf_counter() - begin
            for item, result in zip(batch, results):
                try:
                    writer.add(item.source, item.frame, item.fps, item.image, result)
                except UserError as error:
                    _note(item.source, error, summary, progress)
            summary.images += len(batch)
            progress.show(f'{summary.images / (time.perf_counter() - start):.1f} images a second')
        writer.close()
    except KeyboardInterrupt:  # what was done is kept
        summary.stopped = True
        writer.close()
    finally:
        progress.clear()
        writer.discard()
    summary.seconds = time.perf_counter() - start
    summary.objects = writer.objects if model.task == 'detection' else None
    return summary


def _items(sources: Sequence[Source], summary: Summary, progress: Progress) -> Iterator[Item]:
    for source in sources:
        try:
            if source.is_video:
                video = Video(source.path)
                for number, image in enumerate(video):
                    progress.part = number / video.frames if video.frames else 0
                    yield Item(source, number, video.fps, image)
            else:
                yield Item(source, None, 0, read_picture(source.path))
        except UserError as error:
            _note(source, error, summary, progress)
        progress.done, progress.part = progress.done + 1, 0


def _note(source: Source, error: UserError, summary: Summary, progress: Progress) -> None:
    summary.failures.append(f'{source.path} {error}')
    progress.clear()
    print(f'error: {summary.failures[-1]}', file=sys.stderr)


def _batches(items: Iterator[Item], size: int, mixed_sizes: bool) -> Iterator[list[Item]]:
    """Up to ``size`` items that follow each other, of one size where the model asks for it."""
    batch: list[Item] = []
    for item in items:
        differs = bool(batch) and not mixed_sizes and item.image.shape != batch[0].image.shape
        if len(batch) == size or differs:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class Progress:
    """A bar on the terminal; nothing where the output goes elsewhere. Needs no package."""

    WIDTH = 30

    def __init__(self, total: int) -> None:
        self.total, self.done, self.part = total, 0, 0.0
        self._visible = sys.stderr.isatty()

    def show(self, text: str) -> None:
        filled = round(self.WIDTH * min((self.done + self.part) / self.total, 1))
        self._print(f'{"━" * filled}{"╌" * (self.WIDTH - filled)} {self.done}/{self.total}  {text}')

    def clear(self) -> None:
        self._print('')

    def _print(self, text: str) -> None:
        if self._visible:
            print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)
