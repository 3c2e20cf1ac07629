"""The package's version, and the versions that it runs with; readable without importing the package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version

__version__ = '0.1.0'

MMCV_LITE = 'mmcv-lite==2.1.0'  # the newest that MMDetection 3.3 and MMSegmentation 1.2 take

# Oldest version accepted and first version refused. MMCV is optional: the backbone runs without it.
_SUPPORTED = {
    'torch': ('2.1.0', '3.0.0', True),
    'mmengine': ('0.10.0', '1.0.0', True),
    'mmcv': ('2.0.1', '3.0.0', False),
}


def check_dependencies() -> None:
    """Raises ImportError where torch, MMEngine or MMCV is missing or outside the supported range."""
    specs = {name: importlib.util.find_spec(name) for name in _SUPPORTED}
    found = {name: getattr(spec, 'origin', None) is not None for name, spec in specs.items()}  # no leftover folder
    for name, (minimum, maximum, required) in _SUPPORTED.items():
        if required and not found[name]:
            _refuse(name, minimum, maximum, 'is not installed')
    from mmengine.utils import digit_version

    for name, (minimum, maximum, _) in _SUPPORTED.items():
        if found[name]:
            installed = importlib.import_module(name).__version__
            if not digit_version(minimum) <= digit_version(installed) < digit_version(maximum):
                _refuse(name, minimum, maximum, f'{installed} is installed')


def mmcv_distributions() -> dict[str, str]:
    """The installed distributions that bring a package ``mmcv``, with their versions."""
    found = {}
    for name in ('mmcv', 'mmcv-full', 'mmcv-lite', 'onedl-mmcv'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _refuse(name: str, minimum: str, maximum: str, state: str) -> None:
    wanted = f'{name}>={minimum},<{maximum}'
    command = f'pip install "{wanted}"'
    if name == 'mmcv':  # each of its distributions would be installed over another one
        command = f'pip uninstall -y {" ".join(mmcv_distributions()) or name}, then pip install {MMCV_LITE}'
    message = f'mmefficientmod {__version__} needs {wanted}, but {name} {state}: {command}'
    # MMEngine's registries swallow the exception and say that EfficientMod is unknown.
    print(f'error: {message}', file=sys.stderr)
    raise ImportError(message)
