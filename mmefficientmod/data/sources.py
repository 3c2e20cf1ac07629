"""The data sets of a config before they are built: their class, their names of classes, the files that they read."""

from __future__ import annotations

import inspect
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from ..codebases.config import class_names, find_class
from ..codebases.nodes import KNOWN_PACKAGES, find_datasets, find_dicts, is_local, type_name
from .findings import Finding, error, repeated

# Methods that decide which files a data set reads and what it makes of them.
LOADING = ('__init__', 'full_init', '_join_prefix', 'load_data_list', 'parse_data_info', 'filter_data')


@dataclass(frozen=True)
class Source:
    """One data set of a config, before it is built."""

    place: str  # its dotted path in the config
    part: str  # 'train', 'val' or 'test'
    settings: Mapping
    kind: Any  # its class; None where no installed library has it

    @property
    def kind_name(self) -> str:
        """Name of its class."""
        return getattr(self.kind, '__name__', '')

    @property
    def training(self) -> bool:
        """Whether it is trained on."""
        return self.part == 'train'

    @property
    def is_known(self) -> bool:
        """Whether the MM libraries' own code decides which local files it reads and how."""
        if self.kind is None or not is_local(self.settings):
            return False
        methods = (getattr(self.kind, name, None) for name in LOADING)
        return all(getattr(method, '__module__', 'mmengine').partition('.')[0] in KNOWN_PACKAGES for method in methods)

    def is_a(self, package: str, name: str) -> bool:
        """Whether its class is one of that package, or derived from it."""
        classes = getattr(self.kind, '__mro__', ())
        return any(each.__name__ == name and each.__module__.partition('.')[0] == package for each in classes)

    def option(self, name: str) -> Any:
        """An option's value: from the settings, else the default of the class, None without either."""
        if name in self.settings:
            return self.settings[name]
        for kind in getattr(self.kind, '__mro__', ()):
            parameters = inspect.signature(kind.__init__).parameters
            if name in parameters and parameters[name].default is not inspect.Parameter.empty:
                return parameters[name].default
        return None

    def path(self, name: str) -> str | None:
        """The path that an option such as ``'ann_file'`` or ``'data_prefix.img'`` names; None without one."""
        value: Any = self.settings
        for key in name.split('.'):
            value = value.get(key) if isinstance(value, Mapping) else None
        if not isinstance(value, str) or (not value and name == 'ann_file'):
            return None
        root = self.settings.get('data_root')
        root = osp.expanduser(root) if isinstance(root, str) else ''
        return osp.join(root, osp.expanduser(value))

    @property
    def named_classes(self) -> Sequence[str] | None:
        """The names that the settings give, None without any; raises OSError or ValueError for a file of them."""
        classes = class_names(self.settings)
        own = self.settings.get('classes')  # MMPreTrain's older form
        if classes is None and own is not None:
            classes = class_names(dict(metainfo=dict(classes=own)))
        return classes

    @property
    def classes(self) -> list[str] | None:
        """The names of its classes, in the order of the labels; None where they are not known before the start."""
        try:
            classes = self.named_classes
        except (OSError, ValueError):
            return None
        if classes is None:
            classes = getattr(self.kind, 'METAINFO', {}).get('classes')
        return None if classes is None or isinstance(classes, str) else [str(name) for name in classes]

    def loads(self, name: str) -> bool:
        """Whether its pipeline loads what an option such as ``'with_mask'`` of LoadAnnotations switches on."""
        return any(
            'LoadAnnotations' in type_name(node) and bool(node.get(name))
            for _, node in find_dicts(self.settings.get('pipeline'))
        )


def find_sources(config: Config, part: str) -> Iterator[Source]:
    """The data sets of a part of a config, without those that wrap others."""
    place = f'{part}_dataloader'
    for where, settings in find_datasets(config.get(place), place):
        if where != place:
            yield Source(where, part, settings, find_class(settings, config.get('default_scope')))


def check_names(source: Source) -> Finding | None:
    """What is wrong with the names of the classes in the settings."""
    try:
        classes = source.named_classes
    except (OSError, ValueError) as problem:
        return error(source.place, f'metainfo.classes cannot be read ({problem})')
    if isinstance(classes, str):
        if '://' in classes:  # MMEngine fetches it
            return None
        message = (
            f'metainfo.classes is the text {classes!r}: write ({classes!r},) for one class, or name a file that exists'
        )
        return error(source.place, message)
    if classes is None:
        return None
    twice = sorted(repeated(map(str, classes)))
    if twice:
        return error(source.place, f'metainfo.classes names {", ".join(twice)} twice: give each class one name')
    return None
