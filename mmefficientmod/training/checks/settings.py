"""Misspelt settings: MMEngine passes over some in silence, and others end a training when they are first used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ...codebases.config import find_class
from ...codebases.nodes import find_dicts
from ...data.findings import nearest_name
from ...utils import UserError, enumerate_names

# Dotted path of settings -> the registry of MMEngine that has their class
REGISTRIES = {
    r'(train|val|test)_dataloader(\.\w+)*\.datasets?(\.\d+)?': 'DATASETS',
    r'(train|val|test)_dataloader\.(batch_)?sampler': 'DATA_SAMPLERS',
    r'(train|val|test)_dataloader(\.\w+)*\.pipeline\.\d+': 'TRANSFORMS',
    r'(train|val|test)_evaluator(\.metrics)?(\.\d+)?': 'METRICS',
    r'(train|val|test)_cfg': 'LOOPS',
    r'(default|custom)_hooks\.\w+': 'HOOKS',
    r'optim_wrapper': 'OPTIM_WRAPPERS',
    r'optim_wrapper\.optimizer': 'OPTIMIZERS',
    r'param_scheduler(\.\d+)?': 'PARAM_SCHEDULERS',
    r'model(?!.*(_cfg|dcn)(\.|$))(\.\w+)*': 'MODELS',
}
TAKEN_BY_BUILDERS = {
    *('type', '_scope_', 'priority', 'convert_to_iter_based', 'by_epoch', 'constructor', 'paramwise_cfg'),
    *('num_batch_per_epoch', 'dataset'),
}
DEFAULT_HOOKS = 'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint', 'visualization'
READ_BY_TESTS = re.compile('model|default_hooks|custom_hooks|test_')
SURE = 0.88  # likeness of a name to one that is read, from which it counts as misspelt where others are allowed


def check_settings(config: Config, training: bool) -> list[str]:
    """Finds settings that nothing reads, with the names that were probably meant.

    Args:
        config (Config): Of a training or a test.
        training (bool): Whether it is a training; a test reads less.

    Returns:
        list[str]: A warning for each name at the top of a config, where variables stand as well.

    Raises:
        UserError: For the first setting of a class that does not have it.
    """
    warnings = []
    for place, name, names, owner in _find_unknown(config):
        if training or READ_BY_TESTS.match(place or name):
            nearest = nearest_name(name, names)
            hint = f'is {nearest!r} meant?' if nearest else f'it has {enumerate_names(sorted(names), 20)}'
            line = f'{place}{name} is not a setting of {owner}: {hint}'
            if place:
                raise UserError(line)
            warnings.append(line)
    return warnings


def _find_unknown(config: Config) -> Iterator[tuple[str, str, Collection[str], str]]:
    """Place, name, the names in its stead, and who has these, of each setting that nothing reads."""
    runner, _ = parameters(Runner)
    yield from _misspelt('', config, {*runner, *('sync_bn', 'find_unused_parameters')}, 'MMEngine')
    yield from _misspelt('default_hooks.', config.get('default_hooks') or {}, DEFAULT_HOOKS, 'default_hooks')
    scope = config.get('default_scope')
    for place, settings in find_dicts(config._cfg_dict):
        place = place[1:]
        kind = _kind(place, settings, scope)
        if kind is None:
            continue
        names, others_allowed = parameters(kind)
        if others_allowed or place.startswith('model'):  # parts of a model are built in many ways
            yield from _misspelt(f'{place}.', settings, names, kind.__name__)
        else:
            unknown = settings.keys() - names - TAKEN_BY_BUILDERS
            yield from ((f'{place}.', name, names, kind.__name__) for name in unknown)
        for option, inner in settings.items():
            if isinstance(inner, Mapping) and not inner.get('type'):
                reader = kind
                if option == 'paramwise_cfg':
                    constructor = settings.get('constructor', 'DefaultOptimWrapperConstructor')
                    reader = find_class(dict(type=constructor), scope, 'OPTIM_WRAPPER_CONSTRUCTORS') or kind
                yield from _misspelt(f'{place}.{option}.', inner, _keys_read(reader, option), reader.__name__)


def _misspelt(place: str, settings: Mapping, names: Collection[str], owner: str) -> Iterator[tuple]:
    """The settings that nearly have the name of one that is read and not given."""
    for name in settings:
        if name not in names and name not in TAKEN_BY_BUILDERS and nearest_name(name, names, SURE):
            yield place, name, names, owner


def _kind(place: str, settings: Mapping, scope: str | None) -> type | None:
    """The class that reads settings, None where it is not known."""
    if re.fullmatch(r'(train|val|test)_dataloader', place):
        return DataLoader
    registry = next((name for pattern, name in REGISTRIES.items() if re.fullmatch(pattern, place)), None)
    if registry is None:
        return None
    usual = {
        'train_cfg': 'EpochBasedTrainLoop' if settings.get('by_epoch', True) else 'IterBasedTrainLoop',
        'val_cfg': 'ValLoop',
        'test_cfg': 'TestLoop',
        'optim_wrapper': 'OptimWrapper' if 'optimizer' in settings else None,
    }
    kind = settings.get('type') or usual.get(place)
    found = find_class(dict(type=kind), scope, registry)
    return found if inspect.isclass(found) else None


@lru_cache(maxsize=None)
def parameters(kind: type) -> tuple[set[str], bool]:
    """The names that a class can be built with, and whether it takes others, too."""
    names: set[str] = set()
    for each in kind.__mro__[:-1]:
        if '__init__' in vars(each):
            given = inspect.signature(vars(each)['__init__']).parameters.values()
            names |= {one.name for one in given if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
            if all(one.kind is not one.VAR_KEYWORD for one in given):
                return names - {'self'}, False
    return names - {'self'}, True


@lru_cache(maxsize=None)
def _keys_read(kind: Any, option: str) -> set[str]:
    """The keys of a dict that the code of a class asks for: ``self.filter_cfg.get('min_size', 0)``."""
    pattern = re.compile(rf'\b{option}(?:\.get\(|\[)\s*[\'"](\w+)[\'"]')
    return {name for each in kind.__mro__[:-1] for name in pattern.findall(_source(each))}


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ''
