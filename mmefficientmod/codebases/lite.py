"""Lets MMSegmentation be imported on MMCV without compiled operators (mmcv-lite)."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Callable


class _NoOperators(ModuleType):
    """In the place of ``mmcv._ext``: every operator can be named, and raises where it is called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)

        def operator(*args: object, **kwargs: object) -> None:
            raise RuntimeError(
                f'{name} is a compiled operator, which mmcv-lite does not have: install mmcv with its operators, '
                'see "Install" in the README'
            )

        return operator


def allow_missing_operators() -> bool:
    """Makes ``mmcv.ops`` importable in this process where MMCV came without its compiled part.

    MMSegmentation 1.x imports a few operators at its start, though most of its models call none.

    Returns:
        bool: False, and nothing is changed, if the compiled part is there, or no MMCV at all.
    """
    name = 'mmcv._ext'
    if importlib.util.find_spec('mmcv') is None:
        return False
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        module = sys.modules[name] = _NoOperators(name)
        module.__spec__ = ModuleSpec(name, loader=None)  # MMEngine asks for the loader: none means "not available"
    return isinstance(sys.modules.get(name), _NoOperators)
