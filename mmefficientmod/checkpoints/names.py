"""Names of weights: the authors', the project's, and those of a classifier around a backbone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

BACKBONE_PREFIX = 'backbone.'
STEM = 'patch_embeds.0.proj.weight'
MAX_STAGES = 10
# How a name begins in the released form and in the project's; # is a number. The first line that fits counts.
NAMES = (
    ('patch_embed.', 'patch_embeds.0.'),
    *((f'layers.{i}.downsample.', f'patch_embeds.{i + 1}.') for i in range(MAX_STAGES - 1)),
    ('layers.#.blocks.#.mlp.context_layer.context_list.0.', 'stages.#.#.context.dwconv.'),
    ('layers.#.blocks.#.mlp.context_layer.', 'stages.#.#.context.'),
    ('layers.#.blocks.#.mlp.fc', 'stages.#.#.fc'),
    ('layers.#.blocks.#.gamma_1', 'stages.#.#.gamma'),
    ('layers.#.blocks.#.', 'stages.#.#.'),
)

# The same for a classifier: in the authors' files, and around a backbone in MMPreTrain. The last line is for the rest.
CLASSIFIER_NAMES = (('norm.', 'neck.norm.'), ('head.', 'head.fc.'), ('', BACKBONE_PREFIX))


def to_project_name(name: str) -> str:
    """The project's name of a released backbone parameter; any other name comes back as it is."""
    return _rename(name, NAMES)


def to_released_name(name: str) -> str:
    """The released name of a backbone parameter of the project; any other name comes back as it is."""
    return _rename(name, ((project, released) for released, project in NAMES))


def to_classifier_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names a bare EfficientMod's weights as in a classifier of MMPreTrain; those of a whole model stay as they are."""
    if not any(to_project_name(name) == STEM for name in weights):
        return weights
    return {_rename(name, CLASSIFIER_NAMES): value for name, value in weights.items()}


def to_bare_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undoes :func:`to_classifier_names`; what is no EfficientMod classifier of MMPreTrain comes back as it is."""
    if not {'neck.norm.weight', 'head.fc.weight'} <= set(weights):
        return weights
    table = [(whole, bare) for bare, whole in CLASSIFIER_NAMES]
    return {_rename(name, table): value for name, value in weights.items()}


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str:
    for old, new in table:
        match = re.match(re.escape(old).replace(r'\#', r'(\d+)'), name)
        if match:
            return new.replace('#', '{}').format(*match.groups()) + name[match.end() :]
    return name
