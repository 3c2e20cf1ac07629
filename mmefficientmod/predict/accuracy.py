"""Box AP of a model on images that a COCO JSON annotates."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..utils import UserError, read_json
from .annotations import read_ids
from .run import Model, run
from .sources import Source


def as_sources(images: Sequence[Path]) -> list[Source]:
    """Image files as what is predicted on."""
    return [Source(path, path.name) for path in images]


def check_annotations(images: Sequence[Path], annotations: Path, classes: Sequence[str]) -> None:
    """Raises UserError if the annotations lack an image or a class, or cannot be evaluated."""
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise UserError('--annotations needs pycocotools: pip install pycocotools') from None
    read_ids(annotations, as_sources(images), classes)


def box_ap(model: Model, images: Sequence[Path], annotations: Path) -> float:
    """The box AP of COCO, from 0 to 100, on these images only.

    Args:
        model (Model): A detector that keeps every score.
        images (Sequence[Path]): The images.
        annotations (Path): COCO JSON with all of them.

    Raises:
        UserError: If an image cannot be predicted on.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sources = as_sources(images)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):  # progress
            summary = run(model, sources, Path(folder), draws=False, annotations=annotations)
        if summary.stopped:
            raise KeyboardInterrupt
        if summary.failures:
            raise UserError(summary.failures[0])
        found = read_json(Path(folder, 'predictions.json'))
        if not found:
            return 0.0
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.params.imgIds = list(read_ids(annotations, sources, model.classes).images.values())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])
