"""The tasks that backbones are compared in: their metrics, data set and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure of accuracy."""

    name: str  # in tables, e.g. 'mIoU'; in percent there
    key: str  # in MMEngine's logs
    published: str  # in published.yml
    scale: float = 1.0  # what turns the logged value into percent
    detail: bool = False  # whether it stands at the end of the table


@dataclass(frozen=True)
class Task:
    """What the comparison needs to know of a task; names of published figures are those in ``published.yml``."""

    name: str  # 'detection' or 'segmentation'
    model: str  # the model around the backbone, e.g. 'Mask R-CNN'
    part: str  # what the benchmark calls the model
    scope: str  # the codebase, as a config's default_scope names it
    pattern: str  # the name of a backbone's config, {} in the backbone's place
    metrics: tuple[Metric, ...]  # the one that plots show first
    dataset: str  # of the published figures
    dataset_type: str  # its class
    val_images: int  # in its validation split
    params: str  # published parameters (M)
    latencies: Mapping[tuple[int, int], str]  # published latency (ms, A100) by height and width
    cost_size: tuple[int, int]  # height and width in pixels that multiply-accumulates are counted at
    cost: str | None = None  # published multiply-accumulates (G)


DETECTION = Task(
    name='detection',
    model='Mask R-CNN',
    part='detector',
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
    params='coco_params',
    latencies={(512, 512): 'det_ms_512x512', (800, 1333): 'det_ms_800x1333'},
    cost_size=(512, 512),
)
SEGMENTATION = Task(
    name='segmentation',
    model='Semantic FPN',
    part='segmentor',
    scope='mmseg',
    pattern='fpn_{}_8xb4-40k_ade20k-512x512.py',
    metrics=(Metric('mIoU', 'mIoU', 'miou'),),
    dataset='ADE20K',
    dataset_type='ADE20KDataset',
    val_images=2000,
    params='ade_params',
    latencies={(512, 512): 'seg_ms_512x512'},
    cost_size=(512, 512),
    cost='ade_flops',
)
TASKS = {task.name: task for task in (DETECTION, SEGMENTATION)}
