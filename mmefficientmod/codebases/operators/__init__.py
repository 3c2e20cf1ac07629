"""MMCV's operators without a compiler: what stands in for ``mmcv._ext`` where MMCV came without its compiled part.

``mmcv.ops`` of ``mmcv-lite`` is complete but for that one module. Here are the operators that models of MMDetection,
MMSegmentation and MMPreTrain call, on torch and torchvision, on a CPU and on a GPU. Rotated boxes, point clouds, text
and generative models are left out: their operators raise an error that says what to install.

``import mmefficientmod`` makes them available; a compiled ``mmcv._ext`` is always used where there is one. Programs
that import an MM library without this package need ``python -m mmefficientmod.codebases.operators --install``.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from importlib.metadata import version
from types import ModuleType

from ...version import MMCV_LITE, __version__, mmcv_distributions

EXTENSION = 'mmcv._ext'
_MODULES = ('attention', 'boxes', 'convolutions', 'losses', 'normalization', 'regions')


def find(name: str) -> Callable:
    """An operator by its name in ``mmcv._ext``; one that is not here raises an error where it is called.

    Raises:
        AttributeError: If the name is Python's own, as ``__path__``.
    """
    if name.startswith('__'):
        raise AttributeError(name)
    return _operators().get(name) or functools.partial(_raise_missing, name)


@functools.lru_cache(None)
def _operators() -> dict[str, Callable]:
    import torch

    modules = [importlib.import_module(f'{__name__}.{name}') for name in _MODULES]
    found = {name: torch.no_grad()(getattr(module, name)) for module in modules for name in module.__all__}
    return dict(found, get_compiler_version=_describe, get_compiling_cuda_version=lambda: 'n/a')


def _describe() -> str:
    return f'none (operators of mmefficientmod {__version__}, torchvision {version("torchvision")})'


def _raise_missing(name: str, *args: object, **kwargs: object) -> None:
    raise NotImplementedError(
        f'{name} is an operator of MMCV that mmefficientmod does not stand in for: install MMCV with its compiled '
        'operators, built for this torch, in place of mmcv-lite'
    )


def serve() -> None:
    """Makes the operators available to ``mmcv.ops`` in this process, where no compiled ones are found."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def our_spec() -> ModuleSpec:
    """How Python makes the module that stands in for ``mmcv._ext``."""
    return ModuleSpec(EXTENSION, _OperatorLoader())


class _Finder(MetaPathFinder):
    """Finds ``mmcv._ext``: the compiled module as Python would, else this package's operators."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None:
            return our_spec()
        if isinstance(spec.loader, ExtensionFileLoader):
            spec.loader = _CompiledLoader(spec.loader.name, spec.loader.path)
        return spec


class _OperatorLoader(Loader):
    """Fills a module with the operators."""

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = find  # type: ignore[method-assign]


class _CompiledLoader(ExtensionFileLoader):
    """Says why a compiled module cannot be loaded."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        try:
            return super().create_module(spec)
        except ImportError as error:
            raise ImportError(_explain_broken(error), name=self.name, path=self.path) from error


def _explain_broken(error: ImportError) -> str:
    """Says in one line which compiled module does not fit, and what to do."""
    import torch

    installed = mmcv_distributions()
    wheels = ' and '.join(f'{name} {number}' for name, number in installed.items()) or 'MMCV'
    return (
        f'the compiled operators of {wheels} do not fit torch {torch.__version__} ({error}): build MMCV for this '
        f'torch, or use those of mmefficientmod: pip uninstall -y {" ".join(installed) or "mmcv"}, '
        f'then pip install {MMCV_LITE}'
    )
