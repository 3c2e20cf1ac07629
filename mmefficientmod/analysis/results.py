"""Reads what MMEngine left in work directories: metrics, training curves and the setting of every row."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from .rows import TASKS, CompareError, Row, Task, task_rows
from .runs import innermost_dataset


@dataclass(frozen=True)
class Setting:
    """What a figure of accuracy depends on apart from the backbone.

    Attributes:
        dataset (str): Class of the data set, its root and which part of it.
        val_images (int, optional): Images that the metrics are computed on; None if no log says it.
        schedule (str): Length of the training, e.g. ``'40000 iterations'``.
        batch (int): Images a step, all processes together.
        size (str): Crop or bound of the training images in pixels, e.g. ``'512 x 512'``.
        test_size (str): Bound of the test images.
        optimizer (str): Its type, learning rate, weight decay and precision.
        weights (str): What the backbone started from: ``'pretrained'`` or ``'random'``.
        seed (int, optional): Seed, None if it was drawn.
    """

    dataset: str
    val_images: int | None
    schedule: str
    batch: int
    size: str
    test_size: str
    optimizer: str
    weights: str
    seed: int | None


@dataclass
class Result:
    """What was found for one row.

    Attributes:
        row (Row): The row.
        config (Config): The config that its newest metrics were computed with.
        split (str): Whose data they were computed on: ``'val'`` or ``'test'``.
        training (Config): The config of the training, that of the metrics if there was none.
        folders (set[Path]): The work directories that it was read from.
        metrics (dict[str, float]): Figures as logged, empty if there are none.
        source (str): What computed them, e.g. ``'test of iter_40000.pth'``.
        trained (str): How far the training went, e.g. ``'40000/40000 iterations'``; empty if there was none.
        finished (bool): Whether that is its end.
        processes (int): Processes of the training.
        val_images (int, optional): Images that the newest metrics were computed on.
        losses (dict[int, float]): Training loss by iteration.
        validations (dict[int, dict[str, float]]): Metrics during training, by iteration or epoch.
        setting (Setting, optional): What the metrics depend on.
    """

    row: Row
    config: Config | None = None
    split: str = 'test'
    training: Config | None = None
    folders: set[Path] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    source: str = ''
    trained: str = ''
    finished: bool = True
    processes: int = 1
    val_images: int | None = None
    losses: dict[int, float] = field(default_factory=dict)
    validations: dict[int, dict[str, float]] = field(default_factory=dict)
    setting: Setting | None = None


def collect(paths: Iterable[Path]) -> tuple[Task, dict[str, Result], list[str]]:
    """Reads every work directory at or below the paths.

    Returns:
        tuple[Task, dict[str, Result], list[str]]: The task, the results by the row's key in the order of the rows,
        and one line for everything that could not be used.

    Raises:
        CompareError: If there is no result at all, or results that do not belong into one table.
    """
    configs: dict[Path, Config] = {}
    problems = []
    for path in paths:
        found = sorted(path.rglob('vis_data/config.py'))
        if not found:
            problems.append(f'{path} ' + ('holds no work directory of MMEngine' if path.is_dir() else 'does not exist'))
        for file in found:
            try:
                configs[file.parents[1].resolve()] = Config.fromfile(file)
            except Exception as error:  # a config is a program, and may be cut off by a kill
                problems.append(f'{file} cannot be read ({type(error).__name__})')
    scopes = {config.get('default_scope') for config in configs.values()}
    tasks = [task for task in TASKS.values() if task.scope in scopes]
    if len(tasks) > 1:
        raise CompareError('these are results of detection and of segmentation: report one task at a time')
    if not tasks:
        raise CompareError('; '.join(problems) or 'the work directories belong to neither detection nor segmentation')
    task = tasks.pop()
    rows = task_rows(task)
    results: dict[str, Result] = {}
    for run, config in sorted(configs.items(), key=lambda item: item[0].name):  # MMEngine names runs by their time
        if config.get('default_scope') == task.scope:
            row = _row_of(run.parent, task, rows)
            try:
                _read_run(run, config, results.setdefault(row.key, Result(row)), task)
            except Exception as error:  # any config may come here, say one without a training
                problems.append(f'{run} is not understood ({type(error).__name__}: {error})')
    for key, result in results.items():
        _check_folders(result)
        if result.metrics:
            training = result.training or result.config
            try:
                result.setting = setting_of(result.config, training, result.split, result.processes, result.val_images)
            except Exception as error:  # or one whose data set has no pipeline
                problems.append(f'{key}: its config is not understood ({type(error).__name__}: {error})')
                result.metrics = {}
    _check_dataset(results.values())
    if not any(result.metrics for result in results.values()):
        raise CompareError(f'no row has metrics yet: {", ".join(results)} began, but nothing was validated or tested')
    order = {key: i for i, key in enumerate(rows)}
    return task, dict(sorted(results.items(), key=lambda item: order.get(item[0], len(order)))), problems


def _row_of(work_dir: Path, task: Task, rows: Mapping[str, Row]) -> Row:
    """The row of a work directory, by the name of the config that MMEngine put there, else by the folder's."""
    head = task.pattern.partition('{}')[0]
    for config in work_dir.glob('*.py'):
        match = re.fullmatch(rf'{re.escape(head)}(.+?)(_fpn)?_\d+xb\d+.*\.py', config.name)
        if match:
            return rows.get(match[1]) or Row(match[1], match[1], config)
    name = work_dir.parent.name if work_dir.name in ('train', 'test') else work_dir.name
    return rows.get(name) or Row(name, name, work_dir)


def _read_run(run: Path, config: Config, result: Result, task: Task) -> None:
    """Adds one run, a folder that MMEngine named by its time, to a row's result; runs come oldest first."""
    result.folders.add(run.parent)
    log, scalars = run / f'{run.name}.log', run / 'vis_data' / 'scalars.json'
    text = log.read_text(errors='replace') if log.exists() else ''
    processes = re.search(r'GPU number: (\d+)', text)
    processes = int(processes[1]) if processes else 1
    tested = _metrics(_read_json(run / f'{run.name}.json'), task)
    if tested:
        result.metrics, result.config, result.split = tested, config, 'test'
        result.source = f'test of {Path(config.load_from).name}' if config.get('load_from') else 'test'
        result.val_images = _images(text, 'test', config, processes, task)
    if not scalars.exists():
        return
    if not config.get('resume') and result.training:  # a training from the start: nothing of the one before counts
        result.losses, result.validations, result.metrics, result.source = {}, {}, {}, ''
    for line in scalars.read_text().splitlines():
        entry = _parse(line)
        if 'loss' in entry:
            result.losses[entry['step']] = entry['loss']
        elif metrics := _metrics(entry, task):
            result.validations[entry['step']] = metrics
    result.training, result.processes = config, processes
    _read_progress(run.parent, config, result)
    if result.validations and not result.source.startswith('test'):
        step = max(result.validations)
        result.metrics, result.config, result.split = result.validations[step], config, 'val'
        result.source = f'validation during training, at {_length(config)[1]} {step}'
        result.val_images = _images(text, 'val', config, processes, task) or result.val_images


def _parse(text: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # cut off by a kill
        return {}


def _read_json(path: Path) -> dict:
    return _parse(path.read_text()) if path.exists() else {}


def _metrics(entry: Mapping, task: Task) -> dict[str, float]:
    """The task's figures in what MMEngine logged, none if the first is not among them."""
    found = {metric.key: entry[metric.key] for metric in task.metrics if math.isfinite(entry.get(metric.key, math.nan))}
    return found if task.metrics[0].key in found else {}


def _length(config: Config) -> tuple[int, str]:
    """Length of the training and its unit."""
    if 'max_epochs' in config.train_cfg:
        return config.train_cfg.max_epochs, 'epoch'
    return config.train_cfg.max_iters, 'iteration'


def _count(number: int | str, unit: str, of: int) -> str:
    return f'{number} {unit}' + ('' if of == 1 else 's')


def _read_progress(work_dir: Path, config: Config, result: Result) -> None:
    """How far a training went; it is at its end with the last checkpoint or validation."""
    total, unit = _length(config)
    note = work_dir / 'last_checkpoint'
    saved = re.search(r'_(\d+)\.pth$', note.read_text().strip()) if note.exists() else None
    kept = max([int(saved[1]) if saved else 0, *result.validations])
    step = max([kept, *result.losses]) if unit == 'iteration' else kept
    result.trained, result.finished = _count(f'{step}/{total}', unit, total), kept >= total


def _images(log: str, split: str, config: Config, processes: int, task: Task) -> int | None:
    """Images of the last complete validation or test, which MMEngine notes nowhere but as batches in the log."""
    batches = re.findall(rf'\({split}\) *(?:\[ *\d+\] *)?\[ *(\d+)/\1\]', log)
    if not batches:
        return None
    step = processes * config[f'{split}_dataloader'].batch_size
    most = int(batches[-1]) * step
    return task.val_images if most - step < task.val_images <= most else most  # the last batch may be filled up


def _check_folders(result: Result) -> None:
    """Two trainings of one row, say with two seeds, are two results: the table shows one a row."""
    for kind, pattern in (('train', '*/vis_data/scalars.json'), ('test', '[0-9]*/[0-9]*.json')):
        folders = sorted(str(folder) for folder in result.folders if any(folder.glob(pattern)))
        if len(folders) > 1:
            places = ' and '.join(folders)
            raise CompareError(f'{result.row.key} has {kind} results in {places}: name the one to report')


def dataset_of(config: Config, split: str = 'test') -> tuple[str, ...]:
    """What makes a data set another one: its class, its root, its annotations, its classes."""
    dataset = innermost_dataset(config, split)[1]
    classes = (dataset.get('metainfo') or {}).get('classes')
    return (
        dataset.type,
        os.path.normpath(dataset.get('data_root') or '.'),
        dataset.get('ann_file') or ' '.join((dataset.get('data_prefix') or {}).values()),
        f'({len(classes)} classes)' if classes else '',
    )


def _check_dataset(results: Iterable[Result]) -> None:
    datasets: dict[tuple, list[str]] = {}
    for result in results:
        if result.metrics:
            datasets.setdefault(dataset_of(result.config), []).append(result.row.key)
    if len(datasets) > 1:
        parts = (f'{", ".join(keys)} on {" ".join(dataset)}' for dataset, keys in datasets.items())
        raise CompareError(f'results of different data sets: {"; ".join(parts)}. Report each data set by itself')


def setting_of(config: Config, training: Config, split: str, processes: int, val_images: int | None) -> Setting:
    """The setting that the configs of the metrics and of the training, and what their logs tell, describe."""
    length, unit = _length(training)
    init_cfg = training.model.backbone.get('init_cfg')
    pretrained = isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained'
    kind, root, part, classes = dataset_of(config, split)
    return Setting(
        dataset=' '.join(filter(None, [kind, 'in', os.path.join(root, part), classes])),
        val_images=val_images,
        schedule=_count(length, unit, length),
        batch=training.train_dataloader.batch_size * processes,
        size=_image_size(training, 'train'),
        test_size=_image_size(config, split),
        optimizer=_optimizer(training.optim_wrapper),
        weights='pretrained' if pretrained else 'random',
        seed=(training.get('randomness') or {}).get('seed'),
    )


def _optimizer(wrapper: Mapping) -> str:
    optimizer = wrapper['optimizer']
    figures = (f'{name.replace("_", " ")} {optimizer[name]:g}' for name in ('lr', 'weight_decay') if name in optimizer)
    return ', '.join([optimizer['type'], *figures, *(['mixed precision'] if 'Amp' in wrapper.get('type', '') else [])])


def _image_size(config: Config, split: str) -> str:
    pipeline = {transform.type: transform for transform in innermost_dataset(config, split)[1].pipeline}
    if 'RandomCrop' in pipeline:
        height, width = pipeline['RandomCrop'].crop_size
    elif resize := pipeline.get('Resize') or pipeline.get('RandomResize'):
        height, width = sorted(resize.scale)
    else:
        return 'as in the files'
    return f'{height} x {width}'


def describe(value: object) -> str:
    """A setting in words."""
    return 'unknown' if value is None else str(value)


def on_published_data(result: Result, task: Task) -> bool:
    """Whether the metrics are on the data set of the published ones, its classes unchanged."""
    kind, _, _, other_classes = dataset_of(result.config)
    return kind == task.dataset_type and not other_classes


def deviations(result: Result, task: Task) -> list[str]:
    """What keeps a result from being a repetition of the published one, each in a few words."""
    actual, expected = result.setting, _published_setting(result.row, task)
    found = []
    if not on_published_data(result, task):
        found.append(f'{actual.dataset} instead of {task.dataset}')
    elif actual.val_images is None:
        found.append(f'an unknown number of validation images, {task.val_images} there')
    elif actual.val_images != task.val_images:
        found.append(f'{actual.val_images} validation images instead of {task.val_images}')
    names = ('schedule', 'batch', 'size', 'test_size', 'optimizer', 'weights') if result.trained else ('test_size',)
    for name in names:
        if expected and getattr(actual, name) != getattr(expected, name):
            label = 'training size' if name == 'size' else name.replace('_', ' ')
            found.append(f'{label} {getattr(actual, name)} instead of {getattr(expected, name)}')
    return found


def _published_setting(row: Row, task: Task) -> Setting | None:
    """The setting of the row's own config; None for a row that is none of the comparison's."""
    if row.key not in task_rows(task):
        return None
    config = Config.fromfile(row.config)
    processes = config.auto_scale_lr.base_batch_size // config.train_dataloader.batch_size
    return setting_of(config, config, 'test', processes, task.val_images)
