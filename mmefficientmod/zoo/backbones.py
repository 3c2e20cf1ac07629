"""The backbones that are compared: their names and their configs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .published import published
from .tasks import Task

CONFIGS = (Path(__file__).parents[1] / '.mim' / 'configs').resolve()

# Names in tables: those of the paper's Table 7, in its order, and the further ones. In files they are in lower case.
TABLE7 = tuple(published('downstream'))
FURTHER = (
    *('EfficientMod-xxs', 'EfficientMod-xs', 'VAN-B0', 'FocalNet-T-SRF', 'RepViT-M1.1', 'RepViT-M1.5', 'FasterNet-T2'),
    *('MobileViTv2-1.0', 'MobileNetV2-1.0', 'EdgeViT-S'),
)
NAMES = TABLE7 + FURTHER


@dataclass(frozen=True)
class Backbone:
    """One backbone of the comparison."""

    key: str  # in config names, on command lines and in folders, e.g. 'efficientmod-s'
    name: str  # in tables, e.g. 'EfficientMod-s'
    config: Path  # its config for the task


def task_backbones(task: Task) -> dict[str, Backbone]:
    """All backbones of a task by key, those of Table 7 first: ``configs/_base_/backbones`` is the list of them."""
    names = {name.lower(): name for name in NAMES}
    found = {path.stem for path in (CONFIGS / '_base_' / 'backbones').glob('*.py')}
    order = [key for key in names if key in found] + sorted(found - set(names))
    configs = {key: CONFIGS / task.name / task.pattern.format(key) for key in order}
    return {key: Backbone(key, names.get(key, key), path) for key, path in configs.items() if path.exists()}


def select_backbones(task: Task, wanted: Sequence[str]) -> tuple[list[Backbone], list[str]]:
    """The backbones that are asked for, ``table7``, ``efficientmod`` and ``all`` standing for several.

    Returns:
        tuple[list[Backbone], list[str]]: The backbones, and one line for every name that is none.
    """
    backbones, chosen, problems = task_backbones(task), [], []
    by_name = {normalise(key): [key] for key in backbones}
    by_name['all'] = list(backbones)
    by_name['table7'] = [name.lower() for name in TABLE7]
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
