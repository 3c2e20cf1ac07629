"""The accuracy of a model on annotated images: box AP with a COCO JSON, mIoU with label images."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from ..export.images import find_files, read_image
from ..export.results import Segmentation
from ..utils import UserError, describe_error, quiet, read_json
from .annotations import read_ids
from .run import Model, run
from .sources import Source

if TYPE_CHECKING:
    from ..export.source import Source as Trained


@dataclass(frozen=True)
class Measure:
    """What the user's annotations say of a model."""

    name: str
    images: int  # how many are annotated
    of: Callable[[Model], float]  # from 0 to 100


def read_measure(source: Trained, images: Sequence[Path], annotations: Path) -> Measure:
    """Finds out whether annotations fit images and a model, before a model is measured with them.

    Args:
        source (Source): The trained model, with its config.
        images (Sequence[Path]): The images.
        annotations (Path): COCO JSON for a detector, a folder of label images for a segmentor.

    Raises:
        UserError: If they do not fit, or the model is for another task.
    """
    if source.task == 'detection':
        check_annotations(images, annotations, source.classes)
        return Measure('box AP', len(images), partial(box_ap, images=images, annotations=annotations))
    if source.task == 'segmentation':
        reader = LabelReader(source)
        labels = reader.find(images, annotations)
        return Measure('mIoU', len(images), partial(mean_iou, labels=labels, reader=reader))
    raise UserError('--annotations is for detectors and segmentors')


# Detectors -----------------------------------------------------------------------------------------------------------


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


# Segmentors ----------------------------------------------------------------------------------------------------------


class LabelReader:
    """Reads label images as the test data set of a config of MMSegmentation does.

    Args:
        source (Source): The segmentor, with its config.

    Raises:
        UserError: If the config has no such data set, or it cannot be made.
    """

    def __init__(self, source: Trained) -> None:
        from mmengine.registry import DefaultScope
        from mmseg.registry import DATASETS, TRANSFORMS

        place, settings, pipeline = source.test_data()
        steps = [dict(step) for step in pipeline if 'LoadAnnotations' in str(step['type'])]
        try:
            with DefaultScope.overwrite_default_scope('mmseg'), quiet(), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                self.data: Any = DATASETS.build(dict(settings, pipeline=[], lazy_init=True, test_mode=False))
                self._load = TRANSFORMS.build(steps[0] if steps else dict(type='LoadAnnotations'))
        except Exception as error:  # whatever a data set raises
            raise UserError(
                f'{place}, which says how labels are read, cannot be made ({describe_error(error)})'
            ) from error
        self.num_classes = source.num_classes

    def find(self, images: Sequence[Path], folder: Path) -> dict[Path, Path]:
        """The label image of each image, by its name; those in subfolders count.

        Raises:
            UserError: If there is no such folder, or an image has none or several.
        """
        if not folder.is_dir():
            raise UserError(f'--annotations {folder} is not a folder: a segmentor is measured with one of label images')
        ending, by_name = self.data.seg_map_suffix, defaultdict(list)
        for path in find_files(str(folder), [Path(f'a{ending}').suffix.lower()]).paths:
            by_name[path.name].append(path)
        found, lost = {}, []
        for image in images:
            stem = image.name[: -len(self.data.img_suffix)] if image.name.endswith(self.data.img_suffix) else image.stem
            same = by_name[stem + ending]
            if len(same) == 1:
                found[image] = same[0]
            else:
                lost.append(f'{image} has {"several" if same else "none"} named {stem}{ending}')
        if lost:
            raise UserError(f'{folder} lacks the label image of {len(lost)} of {len(images)} images: {lost[0]}')
        return found

    def read(self, path: Path) -> np.ndarray:
        """The class of each pixel (H, W), or the data set's ``ignore_index``.

        Raises:
            UserError: If the image cannot be read, or has other values.
        """
        data = self.data
        results = dict(seg_map_path=str(path), reduce_zero_label=data.reduce_zero_label, label_map=data.label_map)
        try:
            labels = self._load(dict(results, seg_fields=[]))['gt_seg_map']
        except Exception as error:  # whatever the step raises
            raise UserError(f'{path} cannot be read as labels ({describe_error(error)})') from error
        if labels.ndim != 2:
            raise UserError(f'{path} is a colour image, not one of labels')
        strange = np.setdiff1d(labels, [*range(self.num_classes), data.ignore_index])
        if len(strange):
            raise UserError(
                f'{path} has the label {strange[0]}, but the model has {self.num_classes} classes, from 0 on, and '
                f'{data.ignore_index} is ignored'
            )
        return labels


def mean_iou(model: Model, labels: Mapping[Path, Path], reader: LabelReader) -> float:
    """MMSegmentation's mIoU, from 0 to 100, on images.

    Args:
        model (Model): A segmentor.
        labels (Mapping[Path, Path]): Each image and its label image.
        reader (LabelReader): Reads the label images.

    Raises:
        UserError: If an image cannot be read or predicted on, or its labels do not fit it.
    """
    import torch
    from mmseg.evaluation import IoUMetric

    areas = []
    for path, label in labels.items():
        truth = reader.read(label)
        (result,) = model.predict([read_image(path)])
        assert isinstance(result, Segmentation)
        if truth.shape != result.classes.shape:
            sizes = ' and '.join(f'{height} x {width}' for height, width in (result.classes.shape, truth.shape))
            raise UserError(f'{path} and its labels {label} have different sizes, {sizes}')
        pair = (torch.from_numpy(each.astype(np.int64)) for each in (result.classes, truth))
        areas.append(IoUMetric.intersect_and_union(*pair, reader.num_classes, reader.data.ignore_index))
    totals = (sum(each) for each in zip(*areas))
    return 100 * float(np.nanmean(IoUMetric.total_area_to_metrics(*totals)['IoU']))  # NaN: a class that is nowhere
