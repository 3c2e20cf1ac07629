"""EfficientMod (ICLR 2024) as a plugin for MMDetection, MMSegmentation and MMPreTrain."""

from __future__ import annotations

import importlib.util

from .version import __version__, check_dependencies

# Results and published figures can be read, and exported files run, without both; what needs them says so: models/.
if all(map(importlib.util.find_spec, ('torch', 'mmengine'))):
    check_dependencies()

    from .checkpoints.allowed import allow_safe_globals
    from .codebases.operators import serve

    allow_safe_globals()
    serve()

__all__ = ['__version__']
