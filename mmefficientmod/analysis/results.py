"""Reads what MMEngine left in work directories: metrics, training curves and the setting of every row."""
from __future__ import annotations

import json
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
        dataset (str): Class of the data set and its root.
        val_images (int, optional): Images that the metrics are computed on; None if no log says it.
        schedule (str): Length of the training, e.g. ``'40000 iterations'``.
        batch (int): Images a step, all processes together.
        size (str): Crop or bound of the training images in pixels, e.g. ``'512 x 512'``.
        test_size (str): Bound of the test images.
        weights (str): What the backbone started from: ``'pretrained'`` or ``'random'``.
        seed (int, optional): Seed, None if it was drawn.
    """
    dataset: str
    val_images: int | None
    schedule: str
    batch: int
    size: str
    test_size: str
    weights: str
    seed: int | None


@dataclass
class Result:
    """What was found for one row.

    Attributes:
        row (Row): The row.
        config (Config): The config that its newest metrics were computed with.
        folders (set[Path]): The work directories that it was read from.
        metrics (dict[str, float]): Figures as logged, empty if there are none.
        source (str): What computed them, e.g. ``'test of iter_40000.pth'``.
        trained (str): How far the training went, e.g. ``'40000/40000 iterations'``; empty if there was none.
        finished (bool): Whether that is its end.
        processes (int): Processes of the training.
        val_images (int, optional): Images that the newest metrics were computed on.
        losses (dict[int, float]): Training loss by iteration.
        validations (dict[int, dict[str, float]]): Metrics during training, by iteration or epoch.
    """
    row: Row
    config: Config | None = None
    folders: set[Path] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    source: str = ''
    trained: str = ''
    finished: bool = True
    processes: int = 1
    val_images: int | None = None
    losses: dict[int, float] = field(default_factory=dict)
    validations: dict[int, dict[str, float]] = field(default_factory=dict)


def collect(paths: Iterable[Path]) -> tuple[Task, dict[str, Result], list[str]]:
    """Reads every work directory at or below the paths.

    Returns:
        tuple[Task, dict[str, Result], list[str]]: The task, the results by the row's key in the order of the rows,
        and one line for every path that holds none.

    Raises:
        CompareError: If there is no result at all, or results that do not belong into one table.
    """
    runs, problems = [], []
    for path in paths:
        found = sorted(path.rglob('vis_data/config.py'))
        runs += [file.parents[1] for file in found]
        if not found:
            problems.append(f'{path} ' + ('holds no work directory of MMEngine' if path.is_dir() else 'does not exist'))
    scopes = {run: Config.fromfile(run / 'vis_data' / 'config.py').default_scope for run in runs}
    tasks = [task for task in TASKS.values() if task.scope in scopes.values()]
    if len(tasks) > 1:
        raise CompareError('these are results of detection and of segmentation: report one task at a time')
    if not tasks:
        raise CompareError('; '.join(problems) or 'the work directories belong to neither detection nor segmentation')
    task = tasks.pop()
    rows = task_rows(task)
    results: dict[str, Result] = {}
    for run in sorted(runs, key=lambda run: run.name):  # MMEngine names runs by their time
        row = _row_of(run.parent, task, rows)
        _read_run(run, results.setdefault(row.key, Result(row)), task)
    for result in results.values():
        _check_folders(result)
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


def _read_run(run: Path, result: Result, task: Task) -> None:
    """Adds one run, a folder that MMEngine named by its time, to a row's result; runs come oldest first."""
    config = Config.fromfile(run / 'vis_data' / 'config.py')
    result.folders.add(run.parent)
    keys = [metric.key for metric in task.metrics]
    scalars, tested = run / 'vis_data' / 'scalars.json', run / f'{run.name}.json'
    processes, val_images = _read_log(run / f'{run.name}.log', config)
    for line in scalars.read_text().splitlines() if scalars.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue
        if 'loss' in entry:
            result.losses[entry['step']] = entry['loss']
        elif keys[0] in entry:
            result.validations[entry['step']] = {key: entry[key] for key in keys if key in entry}
    if scalars.exists():
        result.processes = processes
        _read_progress(run, config, result)
    if tested.exists():
        metrics = json.loads(tested.read_text())
        if keys[0] in metrics:
            result.metrics = {key: metrics[key] for key in keys if key in metrics}
            result.source = f'test of {Path(config.load_from).name}'
            result.config, result.val_images = config, val_images
    if not result.source.startswith('test'):
        result.config, result.val_images = config, val_images or result.val_images
        if result.validations:
            step = max(result.validations)
            result.metrics = result.validations[step]
            result.source = f'validation during training, at {_length(config)[1][:-1]} {step}'


def _length(config: Config) -> tuple[int, str]:
    """Length of the training and its unit."""
    if 'max_epochs' in config.train_cfg:
        return config.train_cfg.max_epochs, 'epochs'
    return config.train_cfg.max_iters, 'iterations'


def _read_progress(run: Path, config: Config, result: Result) -> None:
    """How far a training went: its newest checkpoint or validation."""
    total, unit = _length(config)
    note = run.parent / 'last_checkpoint'
    saved = re.search(r'_(\d+)\.pth$', note.read_text().strip()) if note.exists() else None
    step = max([int(saved[1]) if saved else 0, *result.validations])
    result.trained, result.finished = f'{step}/{total} {unit}', step >= total


def _read_log(log: Path, config: Config) -> tuple[int, int | None]:
    """Processes of a run, and images of its last complete validation or test, which MMEngine notes nowhere else."""
    text = log.read_text() if log.exists() else ''
    processes = re.search(r'GPU number: (\d+)', text)
    processes = int(processes[1]) if processes else 1
    batches = re.findall(r'\((?:val|test)\) *\[ *(\d+)/\1\]', text)
    return processes, int(batches[-1]) * processes * config.test_dataloader.batch_size if batches else None


def _check_folders(result: Result) -> None:
    """Two trainings of one row, say with two seeds, are two results: the table shows one a row."""
    for kind, pattern in (('train', '*/vis_data/scalars.json'), ('test', '[0-9]*/[0-9]*.json')):
        folders = sorted(str(folder) for folder in result.folders if any(folder.glob(pattern)))
        if len(folders) > 1:
            places = ' and '.join(folders)
            raise CompareError(f'{result.row.key} has {kind} results in {places}: name the one to report')


def dataset_of(config: Config) -> tuple[str, ...]:
    """What makes a data set another one: its class, its root, its annotations, its classes."""
    dataset = innermost_dataset(config, 'test')[1]
    classes = (dataset.get('metainfo') or {}).get('classes')
    return (dataset.type, dataset.get('data_root') or '',
            dataset.get('ann_file') or ' '.join((dataset.get('data_prefix') or {}).values()),
            f'({len(classes)} classes)' if classes else '')


def _check_dataset(results: Iterable[Result]) -> None:
    datasets: dict[tuple, list[str]] = {}
    for result in results:
        if result.metrics:
            datasets.setdefault(dataset_of(result.config), []).append(result.row.key)
    if len(datasets) > 1:
        parts = (f'{", ".join(keys)} on {" ".join(dataset)}' for dataset, keys in datasets.items())
        raise CompareError(f'results of different data sets: {"; ".join(parts)}. Report each data set by itself')


def setting_of(config: Config, processes: int, val_images: int | None) -> Setting:
    """The setting that a config and what its log tells describe."""
    dataset = innermost_dataset(config, 'test')[1]
    init_cfg = config.model.backbone.get('init_cfg')
    pretrained = isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained'
    return Setting(
        dataset=f'{dataset.type} in {dataset.get("data_root")}',
        val_images=val_images,
        schedule='{} {}'.format(*_length(config)),
        batch=config.train_dataloader.batch_size * processes,
        size=_image_size(config, 'train'),
        test_size=_image_size(config, 'test'),
        weights='pretrained' if pretrained else 'random',
        seed=(config.get('randomness') or {}).get('seed'))


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


def deviations(result: Result, task: Task) -> list[str]:
    """What keeps a result from being a repetition of the published one, each in a few words."""
    actual = setting_of(result.config, result.processes, result.val_images)
    expected = _published_setting(result.row, task)
    found = []
    if dataset_of(result.config)[0] != task.dataset_type:
        found.append(f'{actual.dataset} instead of {task.dataset}')
    elif actual.val_images != task.val_images:
        found.append(f'{describe(actual.val_images)} validation images instead of {task.val_images}')
    names = ('schedule', 'batch', 'size', 'test_size', 'weights') if result.trained else ('test_size', )
    for name in names:
        if expected and getattr(actual, name) != getattr(expected, name):
            found.append(f'{name.replace("_", " ")} {getattr(actual, name)} instead of {getattr(expected, name)}')
    if not result.finished:
        found.append(f'unfinished, {result.trained}')
    return found


def _published_setting(row: Row, task: Task) -> Setting | None:
    """The setting of the row's own config; None for a row that is none of the comparison's."""
    if row.key not in task_rows(task):
        return None
    config = Config.fromfile(row.config)
    processes = config.auto_scale_lr.base_batch_size // config.train_dataloader.batch_size
    return setting_of(config, processes, task.val_images)
