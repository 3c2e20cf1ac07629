"""Walks a config: its backbones, data sets and the files that they name."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mmengine.config import Config, ConfigDict

from ..utils import UserError

KNOWN_PACKAGES = ('mmcv', 'mmdet', 'mmefficientmod', 'mmengine', 'mmpretrain', 'mmseg')


def type_name(settings: Mapping) -> str:
    """The name of the class in the settings of a part of a config, without its package; '' without one."""
    kind = settings.get('type') or ''
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def refuse(problem: str | None) -> None:
    if problem:
        raise UserError(problem)


def find_backbones(config: Config) -> Iterator[tuple[str, ConfigDict, ConfigDict]]:
    """Every backbone of this package, with its dotted path and the model around it."""
    model = config.get('model') or {}
    for place, node in find_dicts(model.get('module') or model, 'model'):  # test-time augmentation wraps the model
        backbone = node.get('backbone')
        if isinstance(backbone, Mapping) and package_of(backbone) == 'mmefficientmod':
            yield f'{place}.backbone', node, backbone


def is_efficientmod(backbone: Mapping) -> bool:
    return package_of(backbone) == 'mmefficientmod' and type_name(backbone) == 'EfficientMod'


def pretrained_parts(config: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Every part of this package that may start from a file, with its dotted path: backbones and a classifier."""
    yield from ((place, backbone) for place, _, backbone in find_backbones(config))
    model = config.get('model') or {}
    model = model.get('module') or model
    if is_classifier(model) and package_of(model) == 'mmefficientmod':
        yield 'model', model


def pretrained_files(place: str, node: Mapping) -> Iterator[tuple[str, str]]:
    """The option and the path of each file that ``init_cfg``, a dict or a list of dicts, names."""
    init_cfg = node.get('init_cfg') or []
    listed = {f'.{i}': each for i, each in enumerate(init_cfg)} if isinstance(init_cfg, Sequence) else {'': init_cfg}
    for number, each in listed.items():
        if isinstance(each, Mapping) and type_name(each) in ('Pretrained', 'PretrainedInit') and each.get('checkpoint'):
            yield f'{place}.init_cfg{number}.checkpoint', each['checkpoint']


def exists(path: str) -> bool:
    """Whether a file or folder exists; addresses count as existing."""
    return '://' in path or osp.exists(osp.expanduser(path))


def missing_pretrained(config: Config) -> list[tuple[str, ConfigDict, str]]:
    """Each file that a part of this package is to start from and that is not there, after the part and its path."""
    return [
        (place, node, path)
        for place, node in pretrained_parts(config)
        for _, path in pretrained_files(place, node)
        if not exists(path)
    ]


def is_local(node: Mapping) -> bool:
    return not any(part.get('backend_args') or part.get('file_client_args') for _, part in find_dicts(node))


def has_own_code(config: Config) -> bool:
    """Whether the config imports modules from elsewhere, whose classes may have rules of their own."""
    custom = config.get('custom_imports')
    imports = (custom.get('imports') if isinstance(custom, Mapping) else None) or []
    imports = [imports] if isinstance(imports, str) else imports
    return any(name.partition('.')[0] not in KNOWN_PACKAGES for name in imports)


def package_of(node: Mapping) -> str:
    """The package of a type, '' for one that is found in the config's default scope."""
    kind = node.get('type') or ''
    if isinstance(kind, str):
        return kind.partition('.')[0] if '.' in kind else ''
    return kind.__module__.partition('.')[0]


def is_known(node: Mapping, packages: Sequence[str] = KNOWN_PACKAGES) -> bool:
    return package_of(node) in ('', *packages)


def find_datasets(node: object, place: str) -> Iterator[tuple[str, Mapping]]:
    """The innermost data sets of a data loader, each with its dotted path."""
    if isinstance(node, Mapping):
        inner = [key for key in ('dataset', 'datasets') if key in node]
        if not inner:
            yield place, node
        for key in inner:
            yield from find_datasets(node[key], f'{place}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from find_datasets(child, f'{place}.{i}')


def find_dicts(node: object, place: str = '') -> Iterator[tuple[str, Mapping]]:
    """Every dict in a part of a config, outermost first, with its dotted path."""
    if isinstance(node, Mapping):
        yield place, node
        children: Iterable = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from find_dicts(child, f'{place}.{key}')


def is_classifier(model: Mapping) -> bool:
    """Whether a model's settings are those of a classifier of this package."""
    return type_name(model) in ('EfficientModClassifier', 'DistilledClassifier')
