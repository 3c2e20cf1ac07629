"""Writes the config that trains a model on a user's data set, as a person would write it on this project's configs."""

from __future__ import annotations

import os
import statistics
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..codebases.config import stretch_schedule
from ..codebases.packages import find_shipped
from ..utils import UserError
from ..zoo.backbones import CONFIGS, Backbone, select_backbones
from ..zoo.tasks import TASKS
from .parts import Boxes, Masks, OwnData, Part

WIDTH = 118
MOST_COLORS = 20  # classes up to which a palette is written; the libraries choose colours for more
SHORTEST_SIDE = 320  # pixels that detectors' images are enlarged to: the smallest anchors are 32 pixels wide
STEPS = 5000  # a training of a small data set has about as many, if that takes no more than MOST_EPOCHS
MOST_EPOCHS = 100
RUNTIMES = {'detection': 'det', 'segmentation': 'seg'}
SCHEDULES = {'detection': 'adamw_1x', 'segmentation': 'adamw_40k', 'classification': 'adamw_300e'}
DATASETS = {'detection': 'coco_instance', 'segmentation': 'ade20k'}
# images a GPU, and the epochs of a data set that is large enough
BATCHES = {'detection': 4, 'segmentation': 4, 'classification': 64}
EPOCHS = {'detection': 12, 'segmentation': 50, 'classification': 30}


@dataclass(frozen=True)
class Model:
    """A model that a config can be written for."""

    task: str
    title: str  # its name in texts
    stock: tuple[str, str] | None = None  # codebase, and its config there; None where this project has configs of it
    masks: bool = False  # whether it is trained on the masks of objects
    whole: bool = False  # whether the stock config is complete, with data, schedule and runtime


MODELS = {
    'mask-rcnn': Model('detection', 'Mask R-CNN', masks=True),
    'faster-rcnn': Model('detection', 'Faster R-CNN'),
    'retinanet': Model('detection', 'RetinaNet', ('mmdet', '_base_/models/retinanet_r50_fpn.py')),
    'rtmdet': Model('detection', 'RTMDet-s', ('mmdet', 'rtmdet/rtmdet_s_8xb32-300e_coco.py'), whole=True),
    'semantic-fpn': Model('segmentation', 'Semantic FPN'),
    'upernet': Model('segmentation', 'UPerNet', ('mmseg', '_base_/models/upernet_r50.py')),
    'segformer': Model('segmentation', 'SegFormer', ('mmseg', '_base_/models/segformer_mit-b0.py')),
    'classifier': Model('classification', 'A classifier'),
}


def default_model(data: OwnData) -> str:
    """The model for a data set: of detectors Mask R-CNN where every object has a mask, else Faster R-CNN."""
    if data.task != 'detection':
        return {'segmentation': 'semantic-fpn', 'classification': 'classifier'}[data.task]
    masked = (bool(each.get('segmentation')) for part in data.parts.values() for each in part.annotations)  # type: ignore[union-attr]
    return 'mask-rcnn' if all(masked) else 'faster-rcnn'


@dataclass(frozen=True)
class Plan:
    """What a config says, in numbers."""

    model: str  # a key of MODELS
    backbone: Backbone
    gpus: int  # 0 for a CPU
    batch: int  # images a step and GPU
    scale: tuple[int, int]  # long and short side of the images in pixels
    crop: int  # side of the crops that segmentors and classifiers train on
    length: int  # epochs, in segmentation iterations
    steps: int  # iterations in all
    interval: int  # epochs or iterations between validations
    rate: float  # learning rate
    schedule: list[dict]  # learning rate schedules


def make_plan(data: OwnData, model: str | None, backbone: str, gpus: int) -> Plan:
    """Chooses sizes, batch, length and rates for a data set that has training and validation data.

    Args:
        data (OwnData): The data set.
        model (str, optional): A key of :data:`MODELS`; None for the one of the task.
        backbone (str): A backbone that this project has a config of.
        gpus (int): GPUs to train on; 0 for a CPU.

    Raises:
        UserError: If model or backbone do not go with the data.
    """
    model = model or default_model(data)
    task = MODELS[model].task
    if task != data.task:
        fitting = ', '.join(name for name, each in MODELS.items() if each.task == data.task)
        raise UserError(f'{model} is for {task}, the data is for {data.task}: choose among {fitting}')
    chosen = _choose_backbone(task, backbone)
    train = data.parts['train']
    batch = max(min(BATCHES[task], len(train) // max(gpus, 1)), 1)
    each = -(-len(train) // (batch * max(gpus, 1)))  # iterations an epoch
    epochs = min(max(EPOCHS[task], -(-STEPS // each)), max(MOST_EPOCHS, EPOCHS[task]))
    by_epoch = task != 'segmentation'
    length = epochs if by_epoch else min(epochs * each, 40000)
    base = _read_schedule(model)
    old = base.train_cfg.get('max_epochs') or base.train_cfg.max_iters
    base.merge_from_dict(stretch_schedule(base.param_scheduler, length / old, length))
    published = base.optim_wrapper.optimizer.lr
    rate = published * batch * max(gpus, 1) / (256 if MODELS[model].whole else base.auto_scale_lr.base_batch_size)
    steps = epochs * each if by_epoch else length
    schedule = [_fit(dict(each), steps, rate / published) for each in base.param_scheduler]
    scale, crop = _sizes(task, train)
    interval = max(length // 20 if by_epoch else length // 10, 1)
    return Plan(model, chosen, gpus, batch, scale, crop, length, steps, interval, float(f'{rate:.3g}'), schedule)


def _choose_backbone(task: str, name: str) -> Backbone:
    found, problems = select_backbones(TASKS[task], [name])
    if problems or len(found) != 1:
        raise UserError(problems[0] if problems else f'{name} stands for several backbones: choose one')
    if task == 'classification' and not found[0].key.startswith('efficientmod'):
        raise UserError('the classifier of this project has an EfficientMod: efficientmod-xxs, -xs, -s or -s-conv')
    return found[0]


def _read_schedule(model: str) -> Config:
    chosen = MODELS[model]
    if chosen.whole and chosen.stock:
        return Config.fromfile(find_shipped(*_stock(chosen)))
    return Config.fromfile(CONFIGS / '_base_' / 'schedules' / f'{SCHEDULES[chosen.task]}.py')


def _stock(model: Model) -> tuple[str, str]:
    assert model.stock, model.title
    return model.stock[0], f'configs/{model.stock[1]}'


def _fit(scheduler: dict, steps: int, ratio: float) -> dict:
    """A schedule with a warm-up of at most a tenth of the training, and with its least rate in proportion."""
    if scheduler['type'] == 'LinearLR' and not scheduler.get('by_epoch'):
        scheduler['end'] = max(min(scheduler['end'], steps // 10), 2)
    if 'eta_min' in scheduler:
        scheduler['eta_min'] = float(f'{scheduler["eta_min"] * ratio:.2g}')
    return scheduler


def _sizes(task: str, part: Part) -> tuple[tuple[int, int], int]:
    """Long and short side that images are resized to, and the side of the crops: those of the data, within bounds."""
    sizes = part.sizes()
    if not sizes:
        raise UserError('none of the training images can be read')
    long = statistics.median_low(max(size) for size in sizes)
    short = statistics.median_low(min(size) for size in sizes)
    if task == 'detection':
        factor = min(1333 / long, max(min(1.0, 800 / short), SHORTEST_SIDE / short))
    else:
        factor = min(2048 / long, min(1.0, 512 / short))
    scale = max(round(long * factor), 32), max(round(short * factor), 32)
    largest, least = (224, 128) if task == 'classification' else (512, 64)
    crop = min(max(short if task == 'classification' else scale[1], least), largest) // 32 * 32
    return scale, crop


def write_config(data: OwnData, plan: Plan, prepared: Path | None = None) -> str:
    """The text of a config.

    Args:
        data (OwnData): The data set, with all files that it needs.
        plan (Plan): What the config is to say.
        prepared (Path, optional): The folder of the files that were added to the data.

    Raises:
        UserError: If a name cannot stand in a config.
    """
    for text in (*data.classes, data.root.as_posix(), str(prepared)):
        if '{{' in text:
            raise UserError(f'{text!r} holds "{{{{", which MMEngine replaces in configs: rename it')
    model = MODELS[plan.model]
    counts = {name: len(part) for name, part in data.parts.items()}
    size = plan.scale if model.task == 'detection' else (plan.crop, plan.crop)
    size = (640, 640) if model.whole else size
    header = (
        f'{model.title} with {plan.backbone.name} on {data.root.name}: {_count(len(data.classes), "class")}, '
        f'{counts["train"]} training and {counts["val"]} validation images, at {size[0]} x {size[1]} pixels'
    )
    body = {'detection': _detection, 'segmentation': _segmentation, 'classification': _classification}[model.task]
    lines = [
        *textwrap.wrap(header, WIDTH, initial_indent='# ', subsequent_indent='# '),
        *_bases(plan),
        *(["custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)"] if model.whole else []),
        '',
        f'data_root = {data.root.as_posix() + "/"!r}',
        *_prepared(data, prepared),
        *_metainfo(data),
        *body(data, plan, prepared),
        '',
        *_schedule(data, plan),
        '',
        *_start(plan),
    ]
    return '\n'.join(lines) + '\n'


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' + ('' if number == 1 else 'es' if noun.endswith('s') else 's')


def _bases(plan: Plan) -> list[str]:
    """The configs that this one inherits, by absolute path: a path like ``mmdet::...`` is not found everywhere."""
    model = MODELS[plan.model]
    if model.stock is None:
        return [f'_base_ = {plan.backbone.config.as_posix()!r}']
    base = CONFIGS / '_base_'
    paths = [base / 'backbones' / f'{plan.backbone.key}.py', Path(find_shipped(*_stock(model)))]
    if not model.whole:
        paths += [
            base / 'datasets' / f'{DATASETS[model.task]}.py',
            base / 'schedules' / f'{SCHEDULES[model.task]}.py',
            base / f'default_runtime_{RUNTIMES[model.task]}.py',
        ]
    return ['_base_ = [', *(f'    {path.as_posix()!r},' for path in paths), ']']


def _metainfo(data: OwnData) -> list[str]:
    """Names of the classes, and their colours where they are few."""
    classes = repr(tuple(data.classes))
    palette = (
        f', palette={data.palette!r}' if len(data.classes) <= MOST_COLORS and data.task != 'classification' else ''
    )
    line = f'metainfo = dict(classes={classes}{palette})'
    if len(line) <= WIDTH:
        return [line]
    lines = ['metainfo = dict(', *_call('    classes=(', [f'{name!r}' for name in data.classes], '),')]
    if palette:
        lines += _call('    palette=[', [f'{tuple(color)!r}' for color in data.palette], '],')
    return [*lines, ')']


def write(**values: Any) -> str:
    """A ``dict(...)`` of values, of which text in :class:`Name` stands without quotes."""
    return f'dict({", ".join(f"{key}={_write(value)}" for key, value in values.items())})'


class Name(str):
    """A variable's name, or another expression, in a config."""


def _write(value: Any) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, Mapping):
        return write(**value)
    if isinstance(value, list):
        return f'[{", ".join(map(_write, value))}]'
    return repr(value)


def _prepared(data: OwnData, prepared: Path | None) -> list[str]:
    """The variable for the folder of what was added to the data, where the config names a file in it."""
    start = f'{prepared.as_posix()}/' if prepared else '\0'
    used = any(start in str(part.settings(data.root)) for part in data.parts.values())
    return [f'prepared = {start!r}'] if used else []


def _named(settings: Mapping, prepared: Path | None) -> dict[str, Any]:
    """Settings whose paths in the folder of what was added start with its variable."""
    start = f'{prepared.as_posix()}/' if prepared else '\0'

    def name(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: name(inner) for key, inner in value.items()}
        inside = isinstance(value, str) and value.startswith(start)
        return Name(f'prepared + {value[len(start) :]!r}') if inside else value

    return name(settings)


def _call(start: str, words: list[str], end: str) -> list[str]:
    """A call in one line, else with its arguments in further lines."""
    inside = ', '.join(words)
    if len(start + inside + end) <= WIDTH:
        return [start + inside + end]
    lines, line = [start], '   '
    for word in words:
        if len(line) + len(word) + 1 + len(end) > WIDTH:
            lines.append(line)
            line = '   '
        line += f' {word},'
    return [*lines, line[:-1] + end]


def _loaders(data: OwnData, plan: Plan, prepared: Path | None) -> list[str]:
    """The data loaders of all parts; the test data is the validation data where there is none."""
    workers = min(os.cpu_count() or 1, 4)
    lines = []
    for name, part in data.parts.items():
        settings = _named(part.settings(data.root), prepared)
        settings['pipeline'] = Name('train_pipeline' if name == 'train' else 'test_pipeline')
        words = [f'{key}={_write(value)}' for key, value in settings.items()]
        batch = f'batch_size={plan.batch}, ' if name == 'train' or data.task == 'classification' else ''
        start = f'{name}_dataloader = dict({batch}num_workers={workers}, dataset=dict('
        lines += _call(start, ['dataset', *words], '))')
    return [*lines, 'del dataset', *([] if 'test' in data.parts else ['test_dataloader = val_dataloader'])]


def _detection(data: OwnData, plan: Plan, prepared: Path | None) -> list[str]:
    model = MODELS[plan.model]
    lines = ['train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline']
    if not model.whole:
        lines.append(f'train_pipeline[2].scale = test_pipeline[1].scale = {plan.scale}')
    if not model.masks and not model.whole:
        lines.append('train_pipeline[1].with_mask = test_pipeline[2].with_mask = False')
    lines += ['dataset = dict(data_root=data_root, metainfo=metainfo)', *_loaders(data, plan, prepared)]
    metric = '' if model.masks or model.whole else ", metric='bbox'"
    for name in ('val', 'test'):
        part = data.parts.get(name)
        if isinstance(part, Boxes):
            assert part.file, 'written before'
            place = _named(part.settings(data.root), prepared)['ann_file']
            place = place if isinstance(place, Name) or os.path.isabs(place) else Name(f'data_root + {place!r}')
            lines.append(f'{name}_evaluator = dict(ann_file={_write(place)}{metric})')
        else:
            lines.append('test_evaluator = val_evaluator')
    return [*lines, '', _DETECTORS[plan.model].format(classes=len(data.classes))]


_DETECTORS = {
    'mask-rcnn': """\
model = dict(roi_head=dict(bbox_head=dict(num_classes={classes}), mask_head=dict(num_classes={classes})))""",
    'faster-rcnn': """\
model = dict(  # Mask R-CNN without the head for masks
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(mask_roi_extractor=None, mask_head=None, bbox_head=dict(num_classes={classes})),
)""",
    'retinanet': """\
model = dict(
    backbone=dict(_base_.backbone, _delete_=True), neck=dict(in_channels=_base_.channels),
    bbox_head=dict(num_classes={classes}),
)""",
    'rtmdet': """\
model = dict(
    # RTMDet's own backbone takes BGR; the weights of these backbones take RGB
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(_base_.backbone, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=_base_.channels[1:]), bbox_head=dict(num_classes={classes}),
)""",
}


def _segmentation(data: OwnData, plan: Plan, prepared: Path | None) -> list[str]:
    part = data.parts['train']
    assert isinstance(part, Masks)
    suffixes = [f'img_suffix={part.suffixes[0]!r}', f'seg_map_suffix={part.mask_suffix!r}']
    classes, norm = len(data.classes), dict(type='SyncBN' if plan.gpus > 1 else 'BN')
    lines = [
        'train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline',
        f'train_pipeline[2].scale = test_pipeline[1].scale = {plan.scale}',
        f'train_pipeline[3].crop_size = {(plan.crop, plan.crop)}',
        'train_pipeline[1].reduce_zero_label = test_pipeline[3].reduce_zero_label = None  # 0 is a class, 255 is none',
        *_call(
            'dataset = dict(', ["type='BaseSegDataset'", 'data_root=data_root', 'metainfo=metainfo', *suffixes], ')'
        ),
        *_loaders(data, plan, prepared),
        '',
    ]
    own = MODELS[plan.model].stock is None
    size = f'data_preprocessor=dict(size={(plan.crop, plan.crop)})'
    head = write(**({} if own else dict(in_channels=Name('_base_.channels'))), num_classes=classes, norm_cfg=norm)
    if own:
        return [*lines, f'model = dict({size}, decode_head={head})']
    further = write(in_channels=Name('_base_.channels[2]'), num_classes=classes, norm_cfg=norm)
    upernet = [f'    pretrained=None, auxiliary_head={further},'] if plan.model == 'upernet' else []
    first = f'    {size}, backbone=dict(_base_.backbone, _delete_=True),'
    return [*lines, 'model = dict(', first, f'    decode_head={head},', *upernet, ')']


def _classification(data: OwnData, plan: Plan, prepared: Path | None) -> list[str]:
    classes = len(data.classes)
    topk = (1, 5) if classes > 5 else (1,)
    lines = ['train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline']
    if plan.crop != 224:
        lines += [
            f'train_pipeline[1].scale = test_pipeline[2].crop_size = {plan.crop}',
            f'test_pipeline[1].scale = {plan.crop * 8 // 7}',
        ]
    return [
        *lines,
        "dataset = dict(_delete_=True, type='CustomDataset', data_root=data_root, metainfo=metainfo)",
        *_loaders(data, plan, prepared),
        f'val_evaluator = test_evaluator = dict(topk={topk})',
        '',
        f'data_preprocessor = dict(num_classes={classes})',
        f'model = dict(head=dict(num_classes={classes}, topk={topk}))',
    ]


def _schedule(data: OwnData, plan: Plan) -> list[str]:
    """Length, rates, and when it is validated, saved and logged."""
    images, whole = plan.batch * max(plan.gpus, 1), MODELS[plan.model].whole
    unit = 'iters' if data.task == 'segmentation' else 'epochs'
    key = best_key(plan)
    wrapper = "type='OptimWrapper', " if data.task == 'classification' and not plan.gpus else ''
    hooks = dict(
        logger=dict(interval=max(min(50, plan.steps // plan.length if unit == 'epochs' else plan.steps // 20), 1)),
        checkpoint=dict(interval=plan.interval, max_keep_ckpts=2, save_best=key),
    )
    train_cfg: dict[str, Any] = {f'max_{unit}': plan.length, 'val_interval': plan.interval}
    lines = []
    if whole:
        switch = plan.length - max(plan.length * 20 // 300, 1)
        train_cfg['dynamic_intervals'] = [(switch, 1)]
        lines += [
            'custom_hooks = _base_.custom_hooks',
            f'custom_hooks[1].switch_epoch = {switch}  # the last epochs do without mosaics',
        ]
    elif data.task == 'classification':
        lines.append('custom_hooks = _base_.custom_hooks[:1]  # no moving average: it lags behind a short training')
    return [
        f'train_cfg = {write(**train_cfg)}  # {plan.steps} iterations',
        f'optim_wrapper = dict({wrapper}optimizer=dict(lr={plan.rate!r}))  # for {_count(images, "image")} a step',
        f'auto_scale_lr = dict(base_batch_size={images})  # for another number of GPUs: --auto-scale-lr',
        'param_scheduler = [',
        *(f'    {write(**scheduler)},' for scheduler in plan.schedule),
        ']',
        f'default_hooks = {write(**hooks)}',
        *lines,
    ]


def best_key(plan: Plan) -> str:
    """The metric that tells which checkpoint is the best."""
    model = MODELS[plan.model]
    if model.task == 'detection':
        return 'coco/segm_mAP' if model.masks else 'coco/bbox_mAP'
    return 'mIoU' if model.task == 'segmentation' else 'accuracy/top1'


def _start(plan: Plan) -> list[str]:
    """The checkpoint to start from, as a comment."""
    if MODELS[plan.model].task == 'classification':
        file = f'checkpoints/{plan.backbone.key.replace("-", "_")}.pth'
        return [f"# load_from = '{file}'  # ImageNet weights; without them, it starts from random weights"]
    file = f'checkpoints/{plan.model}_{plan.backbone.key}.pth'
    return [f"# load_from = '{file}'  # whole model, else ImageNet weights of the backbone"]
