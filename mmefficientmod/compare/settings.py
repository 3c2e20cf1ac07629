"""The settings of a comparison, which are merged over every backbone's config."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..codebases.config import innermost_dataset, read_config, stretch_schedule
from ..utils import UserError, describe_error
from ..zoo.backbones import Backbone, normalise
from ..zoo.tasks import Task
from .workdir import IDENTITY, training_length

WEIGHT_SUFFIXES = ('.pth', '.pt', '.safetensors')


@dataclass(frozen=True)
class Settings:
    """Settings for every config; fields that are not given keep the values of the config."""

    task: Task  # detection, segmentation or classification
    overlays: Sequence[str] = ()  # config files merged over every backbone's config, e.g. another data set
    data_root: str | None = None  # root folder of the data set
    iters: int | None = None  # length of a training that counts iterations; the schedule shrinks or grows with it
    epochs: int | None = None  # the same for one that counts epochs
    size: tuple[int, int] | None = None  # height and width in pixels: the crop, in detection the bound
    batch_size: int | None = None  # images for each process in a step
    workers: int | None = None  # data loading processes
    seed: int = 0  # seed of every backbone
    amp: bool = False  # mixed precision in training
    pretrained: Sequence[str] = ()  # none, a folder, or BACKBONE=FILE: the weights to start from
    # a folder, BACKBONE=FILE, or 'published' for timm's weights: complete models to test in place of training
    checkpoints: Sequence[str] = ()
    cfg_options: Mapping = field(default_factory=dict)  # further settings, applied last


def backbone_config(backbone: Backbone, settings: Settings) -> tuple[Config, dict]:
    """A backbone's config with the comparison's settings.

    Returns:
        tuple[Config, dict]: The config, and the settings that were merged over it by dotted name.

    Raises:
        UserError: If a setting does not fit the config.
    """
    config = backbone.load_config()
    for overlay in settings.overlays:
        try:
            config.merge_from_dict(read_config(overlay).to_dict())
        except UserError as error:
            raise UserError(f'overlay: {error}') from error
        except Exception as error:
            raise UserError(f'overlay {overlay} does not fit the config: {describe_error(error)}') from error
    options: dict[str, Any] = {'randomness.seed': settings.seed, 'default_hooks.checkpoint.max_keep_ckpts': 2}
    if settings.amp:
        options.update({'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'})
    if settings.checkpoints:
        options['load_from'] = _checkpoint(backbone, settings.checkpoints)
    options.update(_length(config, settings))
    options.update(_data(config, settings))
    options.update(_pretrained(backbone, config, settings))
    if settings.size:
        options.update(_size(config, settings.task, settings.size))
    options.update(settings.cfg_options)
    try:
        config.merge_from_dict(options)
        config.merge_from_dict({IDENTITY: dict(task=settings.task.name, backbone=backbone.key, settings=options)})
        _check(config)
    except Exception as error:
        raise UserError(f'the settings do not fit its config: {describe_error(error)}') from error
    return config, options


def _check(config: Config) -> None:
    """Raises an error for a config without a backbone, a training or images."""
    numbers = {
        'length of the training': training_length(config)[0],
        'batch size': config.train_dataloader.batch_size,
        'backbone': len(config.model.backbone),
    }
    for name, number in numbers.items():
        if not (isinstance(number, int) and number > 0):
            raise ValueError(f'{name} {number!r}')


def _length(config: Config, settings: Settings) -> dict:
    """Another length of training, with the schedule in proportion."""
    published, unit = training_length(config)
    by_epoch = unit == 'epoch'
    wanted, unwanted = (settings.epochs, settings.iters) if by_epoch else (settings.iters, settings.epochs)
    if unwanted is not None:
        used, other = ('epochs', 'iters') if by_epoch else ('iters', 'epochs')
        raise UserError(f'{settings.task.name} trains by {used} here: give --{used}, not --{other}')
    if wanted is None:
        return {}
    name = 'max_epochs' if by_epoch else 'max_iters'
    ratio = wanted / published
    options: dict[str, Any] = {f'train_cfg.{name}': wanted}
    options.update(stretch_schedule(config.get('param_scheduler') or [], ratio, wanted))
    if not by_epoch:
        options['default_hooks.logger.interval'] = max(1, min(config.default_hooks.logger.interval, wanted // 20))
        for key, interval in (
            ('train_cfg.val_interval', config.train_cfg.val_interval),
            ('default_hooks.checkpoint.interval', config.default_hooks.checkpoint.interval),
        ):
            options[key] = max(1, round(interval * ratio))
    return options


def _data(config: Config, settings: Settings) -> dict:
    """Root, batch size and loading processes."""
    options: dict[str, Any] = {}
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        place, dataset = innermost_dataset(config, split)
        if settings.data_root:
            options[f'{place}.data_root'] = settings.data_root
            evaluator = config.get(f'{split}_evaluator') or {}
            if evaluator.get('ann_file') and dataset.get('data_root'):
                inside = os.path.relpath(evaluator['ann_file'], dataset['data_root'])
                options[f'{split}_evaluator.ann_file'] = os.path.join(settings.data_root, inside)
        if settings.workers is not None:
            options[f'{loader}.num_workers'] = settings.workers
            options[f'{loader}.persistent_workers'] = settings.workers > 0
    if settings.batch_size:
        options['train_dataloader.batch_size'] = settings.batch_size
    return options


def _size(config: Config, task: Task, size: tuple[int, int]) -> dict:
    """Another image size: every resize of the pipelines keeps its ratio of long to short side."""
    height, width = size
    short, long = sorted(size)
    if task.name == 'classification' and height != width:
        raise UserError(f'classifiers take square images, not {height} x {width}')
    options: dict[str, Any] = {}
    for split in ('train', 'val', 'test'):
        place, dataset = innermost_dataset(config, split)
        for i, transform in enumerate(dataset.pipeline):
            if transform.type in ('Resize', 'RandomResize'):
                if task.name == 'segmentation':  # the crop bounds the size, the scale only the long side
                    long = round(short * max(transform.scale) / min(transform.scale))
                options[f'{place}.pipeline.{i}.scale'] = (long, short)
            elif transform.type == 'RandomCrop':
                options[f'{place}.pipeline.{i}.crop_size'] = (height, width)
            elif transform.type == 'RandomResizedCrop':
                options[f'{place}.pipeline.{i}.scale'] = short
            elif transform.type == 'ResizeEdge':  # keeps its ratio to the crop
                crop = next((each.crop_size for each in dataset.pipeline if each.type == 'CenterCrop'), transform.scale)
                options[f'{place}.pipeline.{i}.scale'] = transform.scale * short // crop
            elif transform.type == 'CenterCrop':
                options[f'{place}.pipeline.{i}.crop_size'] = short
    if 'size' in config.model.get('data_preprocessor', {}):
        options['model.data_preprocessor.size'] = (height, width)
    if 'img_size' in config.model.backbone:
        options['model.backbone.img_size'] = math.ceil(short / 32) * 32
    return options


def _pretrained(backbone: Backbone, config: Config, settings: Settings) -> dict:
    """The initial weights of the backbone. Random ones are all trained, also the statistics of the norms."""
    if not settings.pretrained or settings.checkpoints:
        return {}
    if list(settings.pretrained) == ['none']:
        trained = dict(init_cfg=None, norm_eval=False, frozen_stages=-1)
        return {f'model.backbone.{key}': value for key, value in trained.items() if key in config.model.backbone}
    path = find_weights_file(backbone, settings.pretrained, '--pretrained')
    if path is None:
        return {}
    if isinstance(config.model.backbone.get('init_cfg'), Mapping):
        return {'model.backbone.init_cfg.checkpoint': path}
    return {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=path)}


def _checkpoint(backbone: Backbone, places: Sequence[str]) -> str:
    """The file that a test of a complete model loads, or timm's weights as ``load_from_timm`` takes them."""
    files = [place for place in places if place != 'published']
    known = backbone.weights if len(files) < len(places) else None
    path = find_weights_file(backbone, files, '--checkpoints', known)
    if path is None:
        raise UserError(f'--checkpoints names no file for {backbone.key}: add {backbone.key}=FILE')
    return f'{backbone.weights}={path}' if backbone.weights and path.endswith('.safetensors') else path


def find_weights_file(backbone: Backbone, places: Sequence[str], option: str, default: str | None = None) -> str | None:
    """A backbone's file among ``BACKBONE=FILE`` and folders, otherwise ``default``; None if others are named.

    Raises:
        UserError: If the file does not exist.
    """
    folders = [place for place in places if '=' not in place or Path(place).is_dir()]
    for place in (place for place in places if place not in folders):
        name, _, path = place.partition('=')
        if path and normalise(name) == normalise(backbone.key):
            if not Path(path).is_file():
                raise UserError(f'{option}: {path} does not exist')
            return path
    for folder in folders:
        for file in sorted(Path(folder).glob('*')):
            if file.suffix in WEIGHT_SUFFIXES and normalise(file.stem) == normalise(backbone.key):
                return str(file)
    if folders and default is None:
        raise UserError(
            f'{option}: {", ".join(folders)} holds no file for {backbone.key}, such as {backbone.key}.pth; '
            f'put it there or name it with {option} {backbone.key}=FILE'
        )
    return default
