"""Metrics, training curves and settings of the backbones whose work directories are found; needs no torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from ..codebases.config import class_names, innermost_dataset
from ..utils import UserError, describe_error
from ..zoo.backbones import Backbone, task_backbones
from ..zoo.tasks import TASKS, Task
from .workdir import Run, checkpoint_step, find_runs, saved_step, training_length

# The fields of a Setting, besides the data, in which a run may differ from the published one.
PUBLISHED_SETTINGS = ('schedule', 'learning_rate_schedule', 'batch', 'size', 'test_size', 'optimizer', 'weights')


@dataclass(frozen=True)
class Setting:
    """Everything but the backbone that an accuracy depends on."""

    dataset: str  # class of the data set, its root and its part
    val_images: int | None  # images that the metrics are computed on; None if no log says it
    schedule: str  # length of the training, e.g. '40000 iterations'
    learning_rate_schedule: str  # its types, with the epochs or iterations at which it falls
    batch: int  # images a step of the optimizer, all processes together
    size: str  # crop or bound of the training images in pixels, e.g. '512 x 512'
    test_size: str  # bound of the test images
    optimizer: str  # its type, learning rate, weight decay and precision
    weights: str  # initial weights of the backbone: 'pretrained' or 'random'
    seed: int | None  # seed, None if it was drawn

    def words(self, name: str) -> str:
        """A field in words."""
        value = getattr(self, name)
        return 'unknown' if value is None else str(value)


@dataclass
class Result:
    """The results of one backbone."""

    backbone: Backbone  # the backbone
    config: Config = field(init=False)  # the config that its newest metrics were computed with, unset without them
    split: str = 'test'  # data of the metrics: 'val' or 'test'
    training: Config | None = None  # the config of the training, that of the metrics if there was none
    folders: set[Path] = field(default_factory=set)  # the work directories that it was read from
    metrics: dict[str, float] = field(default_factory=dict)  # values as logged, empty if there are none
    source: str = ''  # origin of the metrics, e.g. 'test of iter_40000.pth'
    trained: str = ''  # how far the training went, e.g. '40000/40000 iterations'; empty if there was none
    finished: bool = True  # whether the training reached its end
    intermediate: bool = False  # whether the metrics are a test of a checkpoint from before the end
    processes: int = 1  # processes of the training, at its end
    # numbers of processes of the training's runs, each number once, in their order
    process_counts: list[int] = field(default_factory=list)
    val_images: int | None = None  # images that the newest metrics were computed on
    losses: dict[int, float] = field(default_factory=dict)  # training loss by iteration
    # metrics during training, by iteration or epoch
    validations: dict[int, dict[str, float]] = field(default_factory=dict)
    setting: Setting = field(init=False)  # what the metrics depend on; unset without metrics

    @property
    def remark(self) -> str:
        """The origin of the metrics."""
        return '; '.join(filter(None, [self.source, self.trained and f'trained {self.trained}']))

    @property
    def unfinished(self) -> str:
        """The origin of the metrics if that is not the end of the training, otherwise empty."""
        if self.intermediate:
            return self.source
        return '' if self.finished else self.trained

    def add(self, run: Run, task: Task) -> None:
        """Adds a run; they come oldest first."""
        self.folders.add(run.work_dir)
        if tested := _metrics(run.test_metrics(), task):
            self.metrics, self.config, self.split = tested, run.config, 'test'
            checkpoint = run.config.get('load_from')
            self.source = f'test of {Path(checkpoint).name}' if checkpoint else 'test'
            step = checkpoint_step(checkpoint) if checkpoint else 0
            self.intermediate = 0 < step < training_length(run.config)[0]
            self.val_images = run.images('test', task.val_images)
        if scalars := run.scalars():
            self._add_training(run, scalars, task)

    def _add_training(self, run: Run, scalars: Iterable[Mapping], task: Task) -> None:
        if not run.config.get('resume') and self.training:  # from the start: nothing of the training before counts
            self.losses, self.validations, self.metrics, self.source = {}, {}, {}, ''
            self.intermediate, self.process_counts = False, []
        for entry in scalars:
            if 'loss' in entry:
                self.losses[entry['step']] = entry['loss']
            elif metrics := _metrics(entry, task):
                self.validations[entry['step']] = metrics
        self.training, self.processes = run.config, run.processes
        self.process_counts = list(dict.fromkeys([*self.process_counts, run.processes]))
        total, unit = training_length(run.config)
        kept = max([saved_step(run.work_dir), *self.validations])
        step = max([kept, *self.losses]) if unit == 'iteration' else kept
        self.trained, self.finished = _count(f'{step}/{total}', unit, total), kept >= total
        if self.validations and not self.source.startswith('test'):
            step = max(self.validations)
            self.metrics, self.config, self.split = self.validations[step], run.config, 'val'
            self.source = f'validation during training, at {unit} {step}'
            self.val_images = run.images('val', task.val_images) or self.val_images


def collect(paths: Iterable[Path]) -> tuple[Task, dict[str, Result], list[str]]:
    """Reads every work directory at or below the paths.

    Returns:
        tuple[Task, dict[str, Result], list[str]]: The task, the results by the backbone's key in the order of the
        backbones, and one line for everything that could not be used.

    Raises:
        UserError: If results are missing, or if they do not belong into one table.
    """
    runs, problems = _read_runs(paths)
    task = _choose_task(runs, problems)
    backbones = task_backbones(task)
    results = _read_results(runs, task, backbones, problems)
    for result in results.values():
        _check_folders(result)
        _read_setting(result, problems)
    _check_dataset(results.values())
    if not any(result.metrics for result in results.values()):
        reason = f'no backbone has metrics yet: {", ".join(results)} began, but nothing was validated or tested'
        raise UserError('; '.join([reason, *problems]))
    order = [*(key for key in backbones if key in results), *(key for key in results if key not in backbones)]
    return task, {key: results[key] for key in order}, problems


def _choose_task(runs: Iterable[Run], problems: Sequence[str]) -> Task:
    """The task of all runs that belong to any.

    Raises:
        UserError: If there is none, or more than one.
    """
    scopes = {run.config.get('default_scope') for run in runs}
    tasks = [task for task in TASKS.values() if task.scope in scopes]
    if len(tasks) > 1:
        names = ' and of '.join(task.name for task in tasks)
        raise UserError(f'these are results of {names}: report one task at a time')
    if not tasks:
        raise UserError('; '.join(problems) or f'the work directories belong to none of {", ".join(TASKS)}')
    return tasks[0]


def _read_results(
    runs: Iterable[Run], task: Task, backbones: Mapping[str, Backbone], problems: list[str]
) -> dict[str, Result]:
    """The results of a task's runs by the backbone's key; adds a line for every run that is not understood."""
    results: dict[str, Result] = {}
    for run in sorted(runs, key=lambda run: run.folder.name):  # MMEngine names runs by their time
        if run.config.get('default_scope') == task.scope:
            backbone = _backbone_of(run, task, backbones)
            try:
                results.setdefault(backbone.key, Result(backbone)).add(run, task)
            except Exception as error:  # any config may come here, e.g. one without a training
                problems.append(f'{run.folder} is not understood ({describe_error(error)})')
    return results


def _read_setting(result: Result, problems: list[str]) -> None:
    """Sets the setting of a result with metrics; removes the metrics, with a line, if the config is not understood."""
    if result.metrics:
        training = result.training or result.config
        try:
            result.setting = setting_of(result.config, training, result.split, result.processes, result.val_images)
        except Exception as error:  # e.g. a config whose data set has no pipeline
            problems.append(f'{result.backbone.key}: its config is not understood ({describe_error(error)})')
            result.metrics = {}


def _read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs at or below the paths, each once, and one line for everything that cannot be read."""
    runs: dict[Path, Run] = {}
    problems = []
    for path in paths:
        folders = find_runs(path)
        if not folders:
            reason = 'does not exist' if not path.exists() else 'is not a folder'
            problems.append(f'{path} {"holds no work directory of MMEngine" if path.is_dir() else reason}')
        for folder in folders:
            try:
                runs[folder.resolve()] = Run(folder.resolve())
            except (Exception, SystemExit) as error:  # a config is a program, and a kill may have cut it off
                problems.append(f'{folder}/vis_data/config.py cannot be read ({type(error).__name__})')
    return list(runs.values()), problems


def _backbone_of(run: Run, task: Task, backbones: Mapping[str, Backbone]) -> Backbone:
    """The backbone of a run, which `compare run` wrote into its config.

    In a run of another tool, the name of the config that MMEngine put into its folder tells, or the folder's name.
    """
    key = run.identity.get('backbone')
    if key:
        return backbones.get(key) or Backbone(key, key, run.work_dir)
    head = task.pattern.partition('{}')[0]
    folder = run.work_dir
    name = folder.parent.name if folder.name in ('train', 'test') else folder.name
    for config in folder.glob('*.py'):
        match = re.fullmatch(rf'{re.escape(head)}(.+?)(_fpn)?_\d+xb\d+.*\.py', config.name)
        if match:
            name = match[1]
    if name not in backbones:  # a config that several share
        model_name = ((run.config.get('model') or {}).get('backbone') or {}).get('model_name')
        own = (key for key, each in backbones.items() if each.settings.get('model.backbone.model_name') == model_name)
        name = next(own, name) if model_name else name
    return backbones.get(name) or Backbone(name, name, folder)


def _metrics(entry: Mapping, task: Task) -> dict[str, float]:
    """The task's metrics in an entry of MMEngine's log, none if the first is not among them."""
    found = {metric.key: entry[metric.key] for metric in task.metrics if math.isfinite(entry.get(metric.key, math.nan))}
    return found if task.metrics[0].key in found else {}


def _count(number: int | str, unit: str, of: int) -> str:
    return f'{number} {unit}' + ('' if of == 1 else 's')


def _check_folders(result: Result) -> None:
    """Refuses two trainings of one backbone, e.g. with two seeds: the table shows one."""
    for kind, pattern in (('train', '*/vis_data/scalars.json'), ('test', '[0-9]*/[0-9]*.json')):
        folders = sorted(str(folder) for folder in result.folders if any(folder.glob(pattern)))
        if len(folders) > 1:
            places = ' and '.join(folders)
            raise UserError(f'{result.backbone.key} has {kind} results in {places}: name the one to report')


def dataset_of(config: Config, split: str = 'test') -> tuple[str, ...]:
    """The class, root, annotations and classes of a data set: with another one of these it is another data set."""
    dataset = innermost_dataset(config, split)[1]
    classes = class_names(dataset)
    prefix = dataset.get('data_prefix') or {}
    return (
        dataset.type,
        os.path.normpath(dataset.get('data_root') or '.'),
        dataset.get('ann_file')
        or (prefix if isinstance(prefix, str) else ' '.join(prefix.values()))
        or dataset.get('split', ''),
        (f'(classes of {classes})' if isinstance(classes, str) else f'({len(classes)} classes)') if classes else '',
    )


def _check_dataset(results: Iterable[Result]) -> None:
    datasets: dict[tuple, list[str]] = {}
    for result in results:
        if result.metrics:
            datasets.setdefault(dataset_of(result.config), []).append(result.backbone.key)
    if len(datasets) > 1:
        parts = (f'{", ".join(keys)} on {" ".join(dataset)}' for dataset, keys in datasets.items())
        raise UserError(f'results of different data sets: {"; ".join(parts)}. Report each data set by itself')


def setting_of(config: Config, training: Config, split: str, processes: int, val_images: int | None) -> Setting:
    """The setting in the configs of the metrics and of the training, and in their logs."""
    length, unit = training_length(training)
    init_cfg = training.model.backbone.get('init_cfg')
    pretrained = isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained'
    kind, root, part, classes = dataset_of(config, split)
    return Setting(
        dataset=' '.join(filter(None, [kind, 'in', os.path.join(root, part), classes])),
        val_images=val_images,
        schedule=_count(length, unit, length),
        learning_rate_schedule=_learning_rate_schedule(training),
        batch=training.train_dataloader.batch_size * processes * training.optim_wrapper.get('accumulative_counts', 1),
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


def _learning_rate_schedule(config: Config) -> str:
    schedulers = config.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    steps = [' and '.join(map(str, each.get('milestones', ()))) for each in schedulers]
    return ', '.join(each['type'] + (f' at {at}' if at else '') for each, at in zip(schedulers, steps)) or 'none'


def _image_size(config: Config, split: str) -> str:
    pipeline = {transform.type: transform for transform in innermost_dataset(config, split)[1].pipeline}
    if 'RandomCrop' in pipeline:
        height, width = pipeline['RandomCrop'].crop_size
    elif resize := pipeline.get('Resize') or pipeline.get('RandomResize'):
        height, width = sorted(resize.scale)
    elif 'RandomResizedCrop' in pipeline:
        height = width = pipeline['RandomResizedCrop'].scale
    elif 'CenterCrop' in pipeline:
        height = width = pipeline['CenterCrop'].crop_size
    else:
        return 'as in the files'
    return f'{height} x {width}'


def on_published_data(result: Result, task: Task) -> bool:
    """Whether the metrics are on the data set of the published ones, its classes unchanged."""
    kind, _, _, other_classes = dataset_of(result.config)
    return kind == task.dataset_type and not other_classes


def deviations(result: Result, task: Task) -> list[str]:
    """The differences between a result's setting and the published one, each in a few words."""
    actual, expected = result.setting, _published_setting(result.backbone, task)
    found = []
    if not on_published_data(result, task):
        found.append(f'{actual.dataset} instead of {task.dataset}')
    elif actual.val_images is None:
        found.append(f'an unknown number of validation images, {task.val_images} there')
    elif actual.val_images != task.val_images:
        found.append(f'{actual.val_images} validation images instead of {task.val_images}')
    names = [name for name in PUBLISHED_SETTINGS if result.trained or name == 'test_size']
    for name in names:
        if expected and getattr(actual, name) != getattr(expected, name):
            label = 'training size' if name == 'size' else name.replace('_', ' ')
            found.append(f'{label} {getattr(actual, name)} instead of {getattr(expected, name)}')
    if len(result.process_counts) > 1:
        found.append(f'trained with {" and ".join(map(str, result.process_counts))} processes in turn')
    if result.backbone.recipe and not result.trained:
        found.append(f'not trained here, and its published weights come from {result.backbone.recipe}')
    return found


def _published_setting(backbone: Backbone, task: Task) -> Setting | None:
    """The setting of the backbone's config; None if the backbone is not part of the comparison."""
    if backbone.key not in task_backbones(task):
        return None
    config = backbone.load_config(import_custom_modules=False)
    processes = config.auto_scale_lr.base_batch_size // config.train_dataloader.batch_size
    return setting_of(config, config, 'test', processes, task.val_images)
