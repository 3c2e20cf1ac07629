"""Finds, reads and interprets configs of the MM libraries; imports no torch."""

from __future__ import annotations

import os
import os.path as osp
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import list_from_file

from ..utils import UserError, describe_error, is_complete_key
from .nodes import find_datasets, find_dicts

CODEBASES = ('mmdet', 'mmseg', 'mmpretrain')
CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def class_names(dataset: Mapping) -> Sequence[str] | None:
    """The classes in a data set's settings, read from a file if they name one, as MMEngine does.

    Returns:
        Sequence[str] | None: The names, None if the settings name none; the text itself if it is not a local file.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    return list_from_file(classes) if isinstance(classes, str) and os.path.isfile(classes) else classes


def innermost_dataset(config: Config, split: str) -> tuple[str, ConfigDict]:
    """The dotted path and the dict of a split's data set, below whatever wraps it; the first one of several.

    Raises:
        UserError: If the config has no such data set.
    """
    loader = f'{split}_dataloader'
    place, dataset = next(find_datasets(config.get(loader), loader), (loader, None))
    if not isinstance(dataset, ConfigDict) or '.dataset' not in place:
        raise UserError(f'the config has no {place}.dataset')
    return place, dataset


def find_test_pipeline(config: Config) -> Sequence[Mapping]:
    """The pipeline of the test data, else what the config calls ``test_pipeline``, else that of the validation.

    Raises:
        UserError: If the config has none of them, or a step is not a dict with a type.
    """
    for split in ('test', 'val'):
        try:
            pipeline = innermost_dataset(config, split)[1].get('pipeline')
        except UserError:
            pipeline = None
        pipeline = pipeline or (config.get('test_pipeline') if split == 'test' else None)
        if pipeline:
            steps = pipeline if isinstance(pipeline, (list, tuple)) else [pipeline]
            strange = [step for step in steps if not isinstance(step, Mapping) or not step.get('type')]
            if steps is not pipeline or strange:
                shown = (strange or steps)[0]
                raise UserError(f'the test pipeline of the config is not a list of dict(type=...), as {shown!r} shows')
            return pipeline
    raise UserError('the config has no test_dataloader.dataset.pipeline: it says how images are prepared')


def stretch_schedule(schedulers: Sequence[Mapping], ratio: float, length: int) -> dict[str, Any]:
    """What makes learning rate schedules fit a training of another length, as options by dotted name.

    Args:
        schedulers (Sequence[Mapping]): The config's ``param_scheduler``.
        ratio (float): New length through old length.
        length (int): The new length, in epochs or iterations.
    """
    options: dict[str, Any] = {}
    for i, scheduler in enumerate(schedulers):
        # a ramp has a first and a last step; one of whole epochs may be the only one, and nothing comes before it then
        shortest = 2 if scheduler['type'] == 'LinearLR' and not scheduler.get('convert_to_iter_based') else 1
        for key, least in (('begin', min(1, length - 1)), ('end', shortest), ('T_max', shortest)):
            if scheduler.get(key):
                options[f'param_scheduler.{i}.{key}'] = max(least, round(scheduler[key] * ratio))
        if 'milestones' in scheduler:
            milestones = [max(1, round(step * ratio)) for step in scheduler['milestones']]
            options[f'param_scheduler.{i}.milestones'] = milestones
    return options


def find_classes(content: dict, config: Config) -> tuple[list[str], list[list[int]]]:
    """Classes and colours: those that the checkpoint notes, else those of the config's test data."""
    found: Any = noted_meta(content)
    if not found.get('classes'):
        found = dataset_meta(config)
    classes, palette = found.get('classes') or [], found.get('palette') or []
    classes = [classes] if isinstance(classes, str) else classes
    palette = palette if isinstance(palette, (list, tuple)) else []
    return [str(name) for name in classes], [[int(value) for value in color] for color in palette]


def noted_meta(content: Mapping) -> Mapping:
    """The classes and palette that a checkpoint notes of its training data; empty if it notes none."""
    meta = content.get('meta')
    found = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def dataset_meta(config: Config) -> Mapping:
    """The classes and palette of the config's test data, without opening the data."""
    try:
        _, dataset = innermost_dataset(config, 'test')
    except UserError:
        return {}
    kind = find_class(dataset, config.get('default_scope'))
    found = {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    return {**found, 'classes': class_names(dataset) or found.get('classes')}


def find_class(settings: Mapping, scope: str | None, registry: str = 'DATASETS') -> Any:
    """The class that the settings of a data set name, or of another part, None where no registry has it."""
    kind = settings.get('type')
    if not isinstance(kind, str):  # a config in pure Python names the class itself
        return kind if isinstance(kind, type) else None
    from mmengine import registry as registries

    try:
        with getattr(registries, registry).switch_scope_and_registry(scope) as found:
            return found.get(kind)
    except ImportError:
        return None


def find_config(name: str) -> str:
    """The path of a config: ``name`` itself, or the installed config of that bare name.

    Raises:
        UserError: If there is neither.
    """
    if not name.strip():
        raise UserError('the config is an empty text: name a config file')
    if osp.isdir(name):
        raise UserError(f'{name} is a folder: the first argument is the path of a config file')
    path = name if osp.isfile(name) else find_installed_config(name)
    if path is None:
        raise UserError(f'config {name} does not exist: give the path of a config, or the name of one of this package')
    if not path.endswith(CONFIG_SUFFIXES):
        raise UserError(f'{name} is not a config: its name ends in none of {", ".join(CONFIG_SUFFIXES)}')
    return path


def find_installed_config(name: str) -> str | None:
    """The config of that name among those installed with the package; a name with a folder is never one of them."""
    if osp.basename(name) != name:
        return None
    file = name if name.endswith('.py') else f'{name}.py'
    found = sorted((Path(__file__).parents[1] / '.mim' / 'configs').rglob('*.py'))
    return next((str(path) for path in found if path.name == file and '_base_' not in path.parts), None)


def read_config(path: str | os.PathLike) -> Config:
    """Reads a config file.

    Raises:
        UserError: If it cannot be read. A config is a program: any error in it, and its end, is about the config.
    """
    if not osp.isfile(path):
        raise UserError(f'config {path} ' + ('is not a regular file' if osp.exists(path) else 'does not exist'))
    try:
        config = Config.fromfile(path)
        list(find_dicts(config._cfg_dict))  # imports what a config in pure Python names
        return config
    except (Exception, SystemExit) as error:
        raise UserError(f'config {path} cannot be read: {describe_error(error)}') from error


def load_config(path: str, options: dict | None = None) -> Config:
    """Reads the config of a model and the overrides of the command line.

    Raises:
        UserError: If one of them cannot be used.
    """
    config = read_config(path)
    try:
        config.merge_from_dict(options or {})
    except Exception as error:
        raise UserError(f'--cfg-options do not fit config {path}: {describe_error(error)}') from error
    if not isinstance(config.get('model'), Mapping):
        raise UserError(f'config {path} describes no model: set model = dict(type=...)')
    return config


def parse_options(pairs: Sequence[str]) -> dict:
    """The changes of a config that ``--cfg-options`` names, by dotted name, as MMEngine reads them.

    Raises:
        UserError: If one of them is not a pair of a key and a value.
    """
    parser = ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction, default={})
    for pair in pairs:
        key, separator, _ = pair.partition('=')
        if not separator or not is_complete_key(key):
            raise UserError(f'--cfg-options takes KEY=VALUE pairs, not {pair!r}')
    try:
        return parser.parse_args(['--options', *pairs]).options if pairs else {}
    except (ValueError, AssertionError, RecursionError) as error:
        raise UserError(f'--cfg-options takes KEY=VALUE pairs ({error})') from None


def find_codebase(config: Config, path: str, script: str = 'train') -> str:
    """The codebase that a config is for: its ``default_scope``, else the package of its model's type.

    Raises:
        UserError: If it is none of the supported ones.
    """
    scope = config.get('default_scope')
    if scope is None:  # as in configs in pure Python, which name the classes themselves
        model_type = (config.get('model') or {}).get('type') or ''
        scope = (model_type if isinstance(model_type, str) else model_type.__module__).partition('.')[0]
    if scope in CODEBASES:
        return scope
    if scope in MODULE2PACKAGE:
        raise UserError(
            f'config {path} belongs to {scope}: run "mim {script} {MODULE2PACKAGE[scope]} {path}"; the backbone only '
            'needs this package to be installed'
        )
    raise UserError(
        f'config {path} belongs to none of {", ".join(CODEBASES)}: its default_scope is {config.get("default_scope")!r}'
    )
