"""EfficientMod (ICLR 2024) as a plugin for MMDetection, MMSegmentation and MMPreTrain."""

import importlib
import importlib.util

from .version import __version__

# Oldest version accepted and first version refused. MMCV is optional: the backbone alone runs without it.
_SUPPORTED = {
    'torch': ('2.1.0', '3.0.0', True),
    'mmengine': ('0.10.0', '1.0.0', True),
    'mmcv': ('2.0.1', '3.0.0', False),
}


def _check_dependencies() -> None:
    """Raises ImportError where torch, MMEngine or MMCV is missing or outside the supported range."""
    for name, (minimum, maximum, required) in _SUPPORTED.items():
        wanted = f'mmefficientmod {__version__} needs {name}>={minimum},<{maximum}'
        if importlib.util.find_spec(name) is None:
            if required:
                raise ImportError(f'{wanted}, but {name} is not installed: pip install "{name}>={minimum},<{maximum}"')
            continue
        installed = importlib.import_module(name).__version__
        from mmengine.utils import digit_version

        if not digit_version(minimum) <= digit_version(installed) < digit_version(maximum):
            raise ImportError(
                f'{wanted}, but {name} {installed} is installed: pip install "{name}>={minimum},<{maximum}"'
            )


_check_dependencies()

from .checkpoint import allow_safe_globals  # noqa: E402

allow_safe_globals()

__all__ = ['__version__']
