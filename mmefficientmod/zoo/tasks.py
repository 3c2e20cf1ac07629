"""The tasks in which backbones are compared: their metrics, data sets and published values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """One measure of accuracy."""

    name: str  # name in tables, e.g. 'mIoU', where values are in percent
    key: str  # name in MMEngine's logs
    published: str  # name in published.yml, empty if the value is not published
    scale: float = 1.0  # factor from the logged value to percent
    detail: bool = False  # whether it stands at the end of the table


@dataclass(frozen=True)
class Task:
    """The facts about a task that the comparison needs; names of published values are those in ``published.yml``."""

    name: str  # 'detection', 'segmentation' or 'classification'
    model: str  # the model around the backbone, e.g. 'Mask R-CNN'
    part: str  # name of the model in the benchmark
    scope: str  # the codebase, as a config's default_scope names it
    pattern: str  # the name of a backbone's config, with {} for the backbone
    metrics: tuple[Metric, ...]  # plots show the first one
    dataset: str  # data set of the published values
    dataset_type: str  # class of the data set
    val_images: int  # size of its validation split
    params: str  # published parameters (M)
    latencies: Mapping[tuple[int, int], str]  # published latency (ms, A100) by height and width
    cost_size: tuple[int, int]  # height and width in pixels at which multiply-accumulates are counted
    cost: str | None = None  # published multiply-accumulates (G)
    table: str = 'downstream'  # the table of published.yml with its values
    group: str = 'table7'  # name of that table's backbones on command lines
    machines: Mapping[str, str] = field(default_factory=dict)  # further published latencies (ms) by machine


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
CLASSIFICATION = Task(
    name='classification',
    model='ImageNet classifier',
    part='classifier',
    scope='mmpretrain',
    pattern='{}_8xb256_in1k.py',
    metrics=(Metric('top-1', 'accuracy/top1', 'top1'), Metric('top-5', 'accuracy/top5', '', detail=True)),
    dataset='ImageNet-1k',
    dataset_type='ImageNet',
    val_images=50000,
    params='params',
    latencies={},  # the paper measures exported files
    cost_size=(224, 224),
    cost='flops',
    table='imagenet',
    group='table1',
    machines={
        'P100': 'gpu_p100_ms',
        'Xeon E5-2680, 4 threads': 'cpu_ms',
        'T4': 't4_ms',
        'V100': 'v100_ms',
        'A100': 'a100_ms',
    },
)
TASKS = {task.name: task for task in (DETECTION, SEGMENTATION, CLASSIFICATION)}
