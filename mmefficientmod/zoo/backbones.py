"""The backbones that are compared: their names and their configs."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import load

from .published import published
from .tasks import Task

CONFIGS = (Path(__file__).parents[1] / '.mim' / 'configs').resolve()

# Names in tables: the names of the paper's Tables 7 and 1 in their order, and others. Files write them in lower case.
TABLE1, TABLE7 = tuple(published('imagenet')), tuple(published('downstream'))
FURTHER = (
    *('EfficientMod-xxs', 'EfficientMod-xs', 'VAN-B0', 'FocalNet-T-SRF', 'RepViT-M1.1', 'RepViT-M1.5', 'FasterNet-T2'),
    *('MobileViTv2-1.0', 'MobileNetV2-1.0', 'EdgeViT-S', 'ResNet-50'),
)
NAMES = tuple(dict.fromkeys(TABLE7 + FURTHER + TABLE1))
TIMM_CLASSIFIERS = Path(__file__).with_name('timm_classifiers.yml')


@dataclass(frozen=True)
class Backbone:
    """One backbone of the comparison."""

    key: str  # in config names, on command lines and in folders, e.g. 'efficientmod-s'
    name: str  # in tables, e.g. 'EfficientMod-s'
    config: Path  # its config for the task
    settings: Mapping[str, Any] = field(default_factory=dict)  # its changes of the config, by dotted name
    weights: str | None = None  # its complete model as timm publishes it, for the checkpoint of a test
    recipe: str = ''  # training recipe of the published weights if it is not that of Table 1

    def load_config(self, **keywords: Any) -> Config:
        """The config with the backbone's settings; keywords go to ``Config.fromfile``."""
        config = Config.fromfile(self.config, **keywords)
        config.merge_from_dict(dict(self.settings))
        return config


def task_backbones(task: Task) -> dict[str, Backbone]:
    """All backbones of a task by key, first the ones of its published table.

    ``configs/_base_/backbones`` is the list of them, for classification with ``timm_classifiers.yml``.
    """
    names = {name.lower(): name for name in dict.fromkeys((*published(task.table), *NAMES))}
    found = {path.stem for path in (CONFIGS / '_base_' / 'backbones').glob('*.py')}
    configs = {key: CONFIGS / task.name / task.pattern.format(key) for key in sorted(found)}
    backbones = {key: Backbone(key, names.get(key, key), path) for key, path in configs.items() if path.exists()}
    if task.name == 'classification':
        backbones = {key: replace(each, recipe=_recipe(each.name)) for key, each in backbones.items()}
        backbones.update((name.lower(), _timm_classifier(name, row)) for name, row in load(TIMM_CLASSIFIERS).items())
    order = [*names, *sorted(set(backbones) - set(names))]
    return {key: backbones[key] for key in order if key in backbones}


def _recipe(name: str) -> str:
    """Training recipe of a released EfficientMod whose accuracy is not that of Table 1."""
    released = published('released_checkpoints')['imagenet']
    return 'distillation' if released.get(name) != published('imagenet').get(name, {}).get('top1') else ''


def _timm_classifier(name: str, row: Mapping[str, Any]) -> Backbone:
    """A model of Table 1 as timm has it, with its size and the preprocessing of its weights."""
    side = published('imagenet')[name]['input']
    settings = {'model.backbone.model_name': row['model'], 'train_dataloader.dataset.pipeline.1.scale': side}
    for split in ('val', 'test'):
        pipeline = f'{split}_dataloader.dataset.pipeline'
        settings[f'{pipeline}.1.scale'] = math.floor(side / row['crop'])
        settings[f'{pipeline}.1.interpolation'] = row.get('interpolation', 'bicubic')
        settings[f'{pipeline}.2.crop_size'] = side
    if row.get('plain'):
        settings['data_preprocessor.mean'], settings['data_preprocessor.std'] = [0.0] * 3, [255.0] * 3
    config = CONFIGS / 'classification' / 'timm_8xb256_in1k.py'
    weights = f'timm://{row["model"]}.{row["weights"]}'
    return Backbone(name.lower(), name, config, settings, weights, row.get('recipe', ''))


def select_backbones(task: Task, wanted: Sequence[str]) -> tuple[list[Backbone], list[str]]:
    """The backbones that are asked for; ``table1``, ``table7``, ``efficientmod`` and ``all`` stand for several.

    Returns:
        tuple[list[Backbone], list[str]]: The backbones, and one line for every unknown name.
    """
    backbones, chosen, problems = task_backbones(task), [], []
    by_name = {normalise(key): [key] for key in backbones}
    by_name['all'] = list(backbones)
    for table, names in (('table1', TABLE1), ('table7', TABLE7)):
        by_name[table] = [name.lower() for name in names if name.lower() in backbones]
    by_name['efficientmod'] = [f'efficientmod-{arch}' for arch in ('xxs', 'xs', 's', 's-conv')]
    for name in wanted:
        if normalise(name) in by_name:
            chosen += by_name[normalise(name)]
        else:
            close = difflib.get_close_matches(name.lower(), backbones, n=1)
            hint = f'did you mean {close[0]}?' if close else f'it has {", ".join(backbones)}'
            problems.append(f'there is no backbone {name!r}: {hint}')
    return [backbones[key] for key in dict.fromkeys(chosen)], problems


def normalise(name: str) -> str:
    """A name without case and punctuation: ``EfficientMod-s`` and ``efficientmod_s`` are the same backbone."""
    return re.sub('[^a-z0-9]', '', name.lower())
