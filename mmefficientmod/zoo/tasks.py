"""The tasks that backbones are compared in: their metrics, data set and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure of accuracy.

    Attributes:
        name (str): Its name in tables, e.g. ``'mIoU'``; in percent there.
        key (str): Its name in MMEngine's logs.
        published (str): Its name in ``published.yml``.
        scale (float): What turns the logged value into percent.
        detail (bool): Whether it stands at the end of the table.
    """

    name: str
    key: str
    published: str
    scale: float = 1.0
    detail: bool = False


@dataclass(frozen=True)
class Task:
    """What the comparison needs to know of a task.

    Attributes:
        name (str): ``'detection'`` or ``'segmentation'``.
        model (str): The model around the backbone, e.g. ``'Mask R-CNN'``.
        scope (str): The codebase, as a config's ``default_scope`` names it.
        pattern (str): The name of a backbone's config, ``{}`` in the backbone's place.
        metrics (tuple[Metric]): Figures of accuracy, the one that plots show first.
        dataset (str): The data set of the published figures.
        dataset_type (str): Its class.
        val_images (int): Images in its validation split.
        part (str): Name of the whole model in the benchmark.
        params (str): Published parameters (M) in ``published.yml``.
        latencies (Mapping): Published latency (ms, A100) there, by height and width.
        cost_size (tuple[int, int]): Height and width in pixels that multiply-accumulates are counted at.
        cost (str, optional): Published multiply-accumulates (G) there.
    """

    name: str
    model: str
    scope: str
    pattern: str
    metrics: tuple[Metric, ...]
    dataset: str
    dataset_type: str
    val_images: int
    part: str
    params: str
    latencies: Mapping[tuple[int, int], str]
    cost_size: tuple[int, int]
    cost: str | None = None


TASKS = {
    'detection': Task(
        name='detection',
        model='Mask R-CNN',
        scope='mmdet',
        pattern='mask-rcnn_{}_fpn_8xb4-1x_coco.py',
        metrics=(
            Metric('box AP', 'coco/bbox_mAP', 'ap_box', 100),
            Metric('box AP50', 'coco/bbox_mAP_50', 'ap_box50', 100, detail=True),
            Metric('box AP75', 'coco/bbox_mAP_75', 'ap_box75', 100, detail=True),
            Metric('mask AP', 'coco/segm_mAP', 'ap_mask', 100),
            Metric('mask AP50', 'coco/segm_mAP_50', 'ap_mask50', 100, detail=True),
            Metric('mask AP75', 'coco/segm_mAP_75', 'ap_mask75', 100, detail=True),
        ),
        dataset='COCO',
        dataset_type='CocoDataset',
        val_images=5000,
        part='detector',
        params='coco_params',
        latencies={(512, 512): 'det_ms_512x512', (800, 1333): 'det_ms_800x1333'},
        cost_size=(512, 512),
    ),
    'segmentation': Task(
        name='segmentation',
        model='Semantic FPN',
        scope='mmseg',
        pattern='fpn_{}_8xb4-40k_ade20k-512x512.py',
        metrics=(Metric('mIoU', 'mIoU', 'miou'),),
        dataset='ADE20K',
        dataset_type='ADE20KDataset',
        val_images=2000,
        part='segmentor',
        params='ade_params',
        latencies={(512, 512): 'seg_ms_512x512'},
        cost_size=(512, 512),
        cost='ade_flops',
    ),
}
