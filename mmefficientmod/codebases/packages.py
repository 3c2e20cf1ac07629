"""Whether an MM library is installed, with the operators that it needs."""

from __future__ import annotations

import importlib.util
import os.path as osp
import sys

from mmengine.config.utils import MODULE2PACKAGE

from ..utils import UserError
from .lite import allow_missing_operators


def find_package(codebase: str) -> str:
    """The path of an installed codebase's ``__init__.py``; raises UserError where there is none."""
    path = getattr(importlib.util.find_spec(codebase), 'origin', None)  # None for a mere folder of that name
    if path is None:
        package = MODULE2PACKAGE.get(codebase, codebase)
        raise UserError(f'{codebase} is not installed: "mim install {package}", or see "Install" in the README')
    return path


def find_shipped(codebase: str, file: str) -> str:
    """The path of a file that an installed codebase ships beside its package, as ``'tools/train.py'``.

    Raises:
        UserError: If the codebase is not installed, or without that file.
    """
    root = osp.dirname(find_package(codebase))
    for place in (osp.join(root, '.mim'), osp.dirname(root)):  # a wheel, an editable checkout
        path = osp.join(place, file)
        if osp.isfile(path):
            return path
    raise UserError(f'{codebase} in {root} came without {file}: install its wheel, or it in editable mode')


def check_mmcv_ops(codebase: str) -> None:
    """Raises UserError where the codebase is missing, or the compiled operators of MMCV that it needs are."""
    find_package(codebase)
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        try:
            _import_models(codebase)  # some codebases import the operators only where they use them
        except ImportError as error:
            raise UserError(
                f'MMCV with compiled operators is needed by {codebase} ({error}): remove mmcv-lite if it is installed '
                'and build mmcv with MMCV_WITH_OPS=1; see "Install" in the README'
            ) from error


def _import_models(codebase: str) -> None:
    try:
        importlib.import_module(f'{codebase}.models')
    except ImportError:
        if codebase != 'mmseg' or not allow_missing_operators():
            raise
        importlib.import_module('mmseg.models')
        print("MMCV has no compiled operators: a model that calls one ends with that operator's name", file=sys.stderr)
