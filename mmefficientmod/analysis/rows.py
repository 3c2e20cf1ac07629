"""The rows of the comparison and the two tasks that they run in: names, configs, metrics."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONFIGS = (Path(__file__).parents[1] / '.mim' / 'configs').resolve()

# Names of the paper's Table 7, in its order, and of the further rows; a config's name holds them in lower case.
TABLE7 = (
    'ResNet-18',
    'PoolFormer-S12',
    'EfficientMod-s-Conv',
    'PVT-Tiny',
    'EfficientFormer-L1',
    'PVTv2-B1',
    'EfficientFormerV2-S2',
    'EfficientMod-s',
)
FURTHER = (
    'EfficientMod-xxs',
    'EfficientMod-xs',
    'VAN-B0',
    'FocalNet-T-SRF',
    'RepViT-M1.1',
    'RepViT-M1.5',
    'FasterNet-T2',
    'MobileViTv2-1.0',
    'MobileNetV2-1.0',
    'EdgeViT-S',
)


class CompareError(RuntimeError):
    """What keeps a row, or the whole comparison, from going on; the message is one line that says what to do."""


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
        scope (str): The codebase, as a config's ``default_scope`` names it.
        pattern (str): The name of a row's config, ``{}`` in the row's place.
        metrics (tuple[Metric]): Figures of accuracy, the one that plots show first.
        dataset (str): The data set of the published figures.
        dataset_type (str): Its class.
        val_images (int): Images in its validation split.
        params (str): Published parameters (M) in ``published.yml``.
        latencies (Mapping): Published latency (ms, A100) there, by height and width.
        cost_size (tuple[int, int]): Height and width in pixels that multiply-accumulates are counted at.
        cost (str, optional): Published multiply-accumulates (G) there.
    """

    name: str
    scope: str
    pattern: str
    metrics: tuple[Metric, ...]
    dataset: str
    dataset_type: str
    val_images: int
    params: str
    latencies: Mapping[tuple[int, int], str]
    cost_size: tuple[int, int]
    cost: str | None = None


TASKS = {
    'detection': Task(
        name='detection',
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
    ),
    'segmentation': Task(
        name='segmentation',
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
    ),
}


@dataclass(frozen=True)
class Row:
    """One backbone of the comparison.

    Attributes:
        key (str): Its name in config names, on command lines and in folders, e.g. ``'efficientmod-s'``.
        name (str): Its name in tables, e.g. ``'EfficientMod-s'``.
        config (Path): Its config for the task.
    """

    key: str
    name: str
    config: Path


def task_rows(task: Task) -> dict[str, Row]:
    """All rows of a task by key, those of Table 7 first."""
    names = {name.lower(): name for name in TABLE7 + FURTHER}
    head, tail = task.pattern.split('{}')
    found = {path.name[len(head) : -len(tail)]: path for path in (CONFIGS / task.name).glob(task.pattern.format('*'))}
    order = [key for key in names if key in found] + sorted(set(found) - set(names))
    return {key: Row(key, names.get(key, key), found[key]) for key in order}


def select_rows(task: Task, wanted: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The rows that are asked for, ``table7`` and ``all`` standing for several.

    Returns:
        tuple[list[Row], list[str]]: The rows, and one line for every name that is none.
    """
    rows, chosen, problems = task_rows(task), {}, []
    by_name = {normalise(key): key for key in rows}
    for name in wanted:
        if name == 'all':
            chosen |= rows
        elif name == 'table7':
            chosen |= {key: rows[key] for key in map(str.lower, TABLE7)}
        elif normalise(name) in by_name:
            key = by_name[normalise(name)]
            chosen[key] = rows[key]
        else:
            close = difflib.get_close_matches(name.lower(), rows, n=1)
            hint = f'did you mean {close[0]}?' if close else f'it has {", ".join(rows)}'
            problems.append(f'there is no row {name!r}: {hint}')
    return list(chosen.values()), problems


def normalise(name: str) -> str:
    """A name without case and punctuation: ``EfficientMod-s`` and ``efficientmod_s`` are the same row."""
    return re.sub('[^a-z0-9]', '', name.lower())


def parse_positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number of 1 or more')
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels of ``800x1333`` or ``512``, for argparse."""
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if not match or min(int(side) for side in match.groups() if side) < 32:
        raise argparse.ArgumentTypeError(f'{text!r} is no size: give HEIGHTxWIDTH in pixels, at least 32 each')
    return int(match[1]), int(match[2] or match[1])
