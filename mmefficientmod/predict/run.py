"""Predicts on many images and videos: batches them, writes results, counts what cannot be read."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..export.images import read_image
from ..export.results import Detections, Result
from ..utils import UserError
from .annotations import read_ids
from .sources import Source, Video
from .writer import NotDrawn, Writer


class Model(Protocol):
    """What predicts."""

    task: str  # 'detection', 'segmentation' or 'classification'
    classes: Sequence[str]
    palette: object  # colours of the classes in RGB, or anything else where there are none
    mixed_sizes: bool  # whether the images of a batch may differ in size
    max_per_img: int | None  # the most detections in an image

    def predict(self, images: list[np.ndarray]) -> list[Result]:
        """Predicts on images, BGR (H, W, 3) uint8."""


@dataclass
class Item:
    """An image, or a frame of a video."""

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
    full: int = 0  # images with as many detections as there can be
    notes: list[str] = field(default_factory=list)  # what a user should know

    def __str__(self) -> str:
        found = '' if self.objects is None else f', {self.objects} objects'
        failed = f', {len(self.failures)} failed' if self.failures else ''
        speed = f'{self.images / self.seconds:.1f} images a second' if self.images else 'no image'
        without = f' ({self.images / self.model_seconds:.1f} without reading and writing)' if self.images else ''
        end = '; stopped' if self.stopped else ''
        count = f'{self.images} image{"" if self.images == 1 else "s"}'
        return f'{count}{found}{failed} in {self.seconds:.1f} s: {speed}{without}{end}'


def run(
    model: Model,
    sources: Sequence[Source],
    out: Path,
    batch_size: int = 1,
    draws: bool = True,
    annotations: Path | None = None,
    max_frames: int | None = None,
) -> Summary:
    """Predicts on all sources and writes the results; one that cannot be read or predicted on is named and left out.

    Args:
        model (Model): What predicts.
        sources (Sequence[Source]): Images, videos and streams.
        out (Path): Folder of the results.
        batch_size (int): Images at a time. Defaults to 1.
        draws (bool): Write images and videos with the predictions. Defaults to True.
        annotations (Path, optional): COCO JSON with the ids of the images and categories. Defaults to None.
        max_frames (int, optional): Most frames of a video or a stream. Defaults to None.

    Raises:
        UserError: If two sources would be written to the same file, or if ``annotations`` lacks an id.
        OSError: If a result cannot be written.
    """
    if annotations and model.task != 'detection':
        raise UserError(f'--annotations {annotations} numbers objects, but the model is for {model.task}: leave it out')
    ids = read_ids(annotations, sources, model.classes) if annotations else None
    summary, progress = Summary(), Progress(len(sources))
    writer = Writer(out, sources, model.classes, model.palette, draws, ids)
    start = time.perf_counter()
    try:
        with suppress(KeyboardInterrupt):  # what was done is kept
            summary.stopped = True
            for batch in _batches(_items(sources, max_frames, summary, progress), batch_size, model.mixed_sizes):
                for item, result in _predict(model, batch, summary, progress):
                    _write(writer, item, result, summary, progress)
                    is_full = isinstance(result, Detections) and len(result.scores) == model.max_per_img
                    summary.full += is_full
                progress.show(f'{summary.images / (time.perf_counter() - start):.1f} images a second')
            summary.stopped = False
        if summary.images:  # otherwise results of an earlier run stay
            writer.close()
    finally:
        progress.close()
        writer.discard()
    summary.seconds = time.perf_counter() - start
    summary.objects = writer.objects if model.task == 'detection' else None
    summary.notes += list(getattr(model, 'notes', []))
    if draws and writer.drawn_classes != writer.classes:
        summary.notes.append(
            'OpenCV 4 draws ASCII only: names of classes are drawn without accents, or as numbers, '
            'and predictions.json has them whole; opencv-python 5 draws them'
        )
    if summary.full:
        summary.notes.append(
            f'{summary.full} images have as many detections as max_per_img={model.max_per_img} lets through: there may '
            'be more, see --max-per-img'
        )
    return summary


def _predict(model: Model, batch: list[Item], summary: Summary, progress: Progress) -> Iterator[tuple[Item, Result]]:
    """The results of a batch; where one image of it fails, of the others."""
    begin = time.perf_counter()
    try:
        results = model.predict([item.image for item in batch])
    except UserError as error:
        if len(batch) == 1:
            _note(batch[0].source, error, summary, progress)
        else:
            for item in batch:
                yield from _predict(model, [item], summary, progress)
        return
    finally:
        summary.model_seconds += time.perf_counter() - begin
    summary.images += len(batch)
    yield from zip(batch, results)


def _write(writer: Writer, item: Item, result: Result, summary: Summary, progress: Progress) -> None:
    try:
        writer.add(item.source, item.frame, item.fps, item.image, result)
    except NotDrawn as error:
        _note(item.source, error, summary, progress)


def _items(sources: Sequence[Source], max_frames: int | None, summary: Summary, progress: Progress) -> Iterator[Item]:
    for source in sources:
        try:
            if source.is_video:
                video = Video(source)
                for number, image in enumerate(itertools.islice(video, max_frames)):
                    progress.part = number / video.frames if video.frames else 0
                    yield Item(source, number, video.fps, image)
                if video.is_uneven:
                    summary.notes.append(
                        f'{source}: its frames come at intervals that differ; a drawn video shows '
                        f'{video.fps:.3g} of them a second, and its times are others'
                    )
            else:
                yield Item(source, None, 0, read_image(source.path))
        except UserError as error:
            _note(source, error, summary, progress)
        progress.done, progress.part = progress.done + 1, 0


def _note(source: Source, error: UserError, summary: Summary, progress: Progress) -> None:
    failure = f'{source} {error}'
    if failure not in summary.failures:  # a video fails with one line, not with one a frame
        summary.failures.append(failure)
        progress.note(f'error: {failure}')


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
    """How far the run is: a bar with rich on a terminal, else a line every ten seconds."""

    SECONDS = 10.0  # between two lines

    def __init__(self, total: int) -> None:
        self.total, self.done, self.part = total, 0, 0.0
        self._next = time.monotonic() + self.SECONDS
        self._bar: Any = None
        if sys.stderr.isatty() and importlib.util.find_spec('rich'):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = BarColumn(), MofNCompleteColumn(), TextColumn('{task.description}'), TimeRemainingColumn()
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task('', total=total)
            self._bar.start()

    def show(self, text: str) -> None:
        """Shows ``done`` and ``part``, the share of the next one, with a text."""
        if self._bar:
            self._bar.update(self._task, completed=self.done + self.part, description=text)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self.SECONDS
            share = f'{100 * self.part:.0f} % of the next, ' if self.part else ''
            print(f'{self.done} of {self.total} done, {share}{text}', file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        """Prints a line."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar:
            self._bar.stop()
