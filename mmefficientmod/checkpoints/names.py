"""Translates the names of weights: the authors', the project's, and those of a classifier in MMPreTrain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import Tensor

BACKBONE_PREFIX = 'backbone.'
STEM = 'patch_embeds.0.proj.weight'

# (pattern, replacement) for the beginning of a name; the first pair that matches counts.
TO_PROJECT = (
    (r'patch_embed\.', 'patch_embeds.0.'),
    (r'layers\.(\d+)\.downsample\.', lambda match: f'patch_embeds.{int(match[1]) + 1}.'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.mlp\.context_layer\.context_list\.0\.', r'stages.\1.\2.context.dwconv.'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.mlp\.context_layer\.', r'stages.\1.\2.context.'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc', r'stages.\1.\2.fc'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.gamma_1', r'stages.\1.\2.gamma'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.', r'stages.\1.\2.'),
)
TO_RELEASED = (
    (r'patch_embeds\.0\.', 'patch_embed.'),
    (r'patch_embeds\.(\d+)\.', lambda match: f'layers.{int(match[1]) - 1}.downsample.'),
    (r'stages\.(\d+)\.(\d+)\.context\.dwconv\.', r'layers.\1.blocks.\2.mlp.context_layer.context_list.0.'),
    (r'stages\.(\d+)\.(\d+)\.context\.', r'layers.\1.blocks.\2.mlp.context_layer.'),
    (r'stages\.(\d+)\.(\d+)\.fc', r'layers.\1.blocks.\2.mlp.fc'),
    (r'stages\.(\d+)\.(\d+)\.gamma', r'layers.\1.blocks.\2.gamma_1'),
    (r'stages\.(\d+)\.(\d+)\.', r'layers.\1.blocks.\2.'),
)
# A classifier in the authors' files <-> a classifier around a backbone in MMPreTrain; the last pair is the fallback.
TO_CLASSIFIER = ((r'norm\.', 'neck.norm.'), (r'head\.', 'head.fc.'), ('', BACKBONE_PREFIX))
TO_BARE = ((r'neck\.norm\.', 'norm.'), (r'head\.fc\.', 'head.'), (r'backbone\.', ''))


def to_project_name(name: str) -> str:
    """The project's name of a released backbone parameter; any other name is returned unchanged."""
    return _rename(name, TO_PROJECT)


def to_released_name(name: str) -> str:
    """The released name of one of the project's backbone parameters; any other name is returned unchanged."""
    return _rename(name, TO_RELEASED)


def to_classifier_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names a bare EfficientMod's weights as a classifier of MMPreTrain does; a whole model's stay unchanged."""
    if not any(to_project_name(name) == STEM for name in weights):
        return weights
    return {_rename(name, TO_CLASSIFIER): value for name, value in weights.items()}


def to_bare_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undoes :func:`to_classifier_names`; other weights than those of such a classifier stay unchanged."""
    if not {'neck.norm.weight', 'head.fc.weight'} <= set(weights):
        return weights
    return {_rename(name, TO_BARE): value for name, value in weights.items()}


def _rename(name: str, pairs: Iterable[tuple[str, str | Callable[[re.Match], str]]]) -> str:
    for pattern, replacement in pairs:
        renamed, found = re.subn(f'^{pattern}', replacement, name)
        if found:
            return renamed
    return name
