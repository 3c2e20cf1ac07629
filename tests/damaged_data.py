"""Changes to generated data, one mistake each, and what is found in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from helpers import REPO
from mmefficientmod.data.findings import Finding
from mmefficientmod.data.inspect import inspect_all

DETECTION = REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py'
SEGMENTATION = REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'
NAMES = ('ball', 'box', 'plaything', 'flower', 'tent', 'fan')
SPLITS = ('train', 'val', 'test')


def load(path: Path, **options: object) -> Config:
    """A config with options in the form of ``--cfg-options``, dots written as ``__``."""
    config = Config.fromfile(path)
    config.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return config


def change_json(root: Path, change: Callable[[dict], object], splits: tuple = ('train', 'val')) -> None:
    """Changes the content of the annotation files in place."""
    for split in splits:
        path = root / f'coco/annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def change_objects(root: Path, change: Callable[[dict], object], splits: tuple = ('train', 'val')) -> None:
    """Changes each annotation."""
    change_json(root, lambda content: [change(each) for each in content['annotations']], splits)


def look(config: Config, parts: tuple = ('train', 'val')) -> list[Finding]:
    """All findings of a config."""
    return inspect_all(config, parts)


def errors(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.level == 'error']


def warnings(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.level == 'warning']
