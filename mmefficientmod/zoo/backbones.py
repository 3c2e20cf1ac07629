"""The backbones that are compared: their names and their configs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .tasks import Task

CONFIGS = (Path(__file__).parents[1] / '.mim' / 'configs').resolve()

# Names of the paper's Table 7, in its order, and of the further backbones; a config's name holds them in lower case.
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


@dataclass(frozen=True)
class Backbone:
    """One backbone of the comparison.

    Attributes:
        key (str): Its name in config names, on command lines and in folders, e.g. ``'efficientmod-s'``.
        name (str): Its name in tables, e.g. ``'EfficientMod-s'``.
        config (Path): Its config for the task.
    """

    key: str
    name: str
    config: Path


def task_backbones(task: Task) -> dict[str, Backbone]:
    """All backbones of a task by key, those of Table 7 first."""
    names = {name.lower(): name for name in TABLE7 + FURTHER}
    head, tail = task.pattern.split('{}')
    found = {path.name[len(head) : -len(tail)]: path for path in (CONFIGS / task.name).glob(task.pattern.format('*'))}
    order = [key for key in names if key in found] + sorted(set(found) - set(names))
    return {key: Backbone(key, names.get(key, key), found[key]) for key in order}


def select_backbones(task: Task, wanted: Sequence[str]) -> tuple[list[Backbone], list[str]]:
    """The backbones that are asked for, ``table7`` and ``all`` standing for several.

    Returns:
        tuple[list[Backbone], list[str]]: The backbones, and one line for every name that is none.
    """
    backbones, chosen, problems = task_backbones(task), [], []
    by_name = {normalise(key): key for key in backbones}
    groups = {'all': list(backbones), 'table7': [name.lower() for name in TABLE7]}
    for name in wanted:
        if name in groups:
            chosen += groups[name]
        elif normalise(name) in by_name:
            chosen.append(by_name[normalise(name)])
        else:
            close = difflib.get_close_matches(name.lower(), backbones, n=1)
            hint = f'did you mean {close[0]}?' if close else f'it has {", ".join(backbones)}'
            problems.append(f'there is no backbone {name!r}: {hint}')
    return [backbones[key] for key in dict.fromkeys(chosen)], problems


def normalise(name: str) -> str:
    """A name without case and punctuation: ``EfficientMod-s`` and ``efficientmod_s`` are the same backbone."""
    return re.sub('[^a-z0-9]', '', name.lower())
