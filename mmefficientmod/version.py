"""The package's version, and the versions that it runs with; readable without importing the package."""

from __future__ import annotations

import importlib
import importlib.util
import sys

__version__ = '0.1.0'

# Oldest version accepted and first version refused. MMCV is optional: the backbone alone runs without it.
_SUPPORTED = {
    'torch': ('2.1.0', '3.0.0', True),
    'mmengine': ('0.10.0', '1.0.0', True),
    'mmcv': ('2.0.1', '3.0.0', False),
}


def check_dependencies() -> None:
    """Raises ImportError where torch, MMEngine or MMCV is missing or outside the supported range."""
    found = {name: importlib.util.find_spec(name) is not None for name in _SUPPORTED}
    for name, (minimum, maximum, required) in _SUPPORTED.items():
        if required and not found[name]:
            _refuse(name, minimum, maximum, 'is not installed')
    from mmengine.utils import digit_version

    for name, (minimum, maximum, _) in _SUPPORTED.items():
        if found[name]:
            installed = importlib.import_module(name).__version__
            if not digit_version(minimum) <= digit_version(installed) < digit_version(maximum):
                _refuse(name, minimum, maximum, f'{installed} is installed')


def _refuse(name: str, minimum: str, maximum: str, state: str) -> None:
    wanted = f'{name}>={minimum},<{maximum}'
    message = f'mmefficientmod {__version__} needs {wanted}, but {name} {state}: pip install "{wanted}"'
    # MMEngine's registries swallow the exception and say that EfficientMod is unknown.
    print(f'error: {message}', file=sys.stderr)
    raise ImportError(message)
