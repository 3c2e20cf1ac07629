"""Whether an MM library is installed, with the operators that it needs."""

from __future__ import annotations

import importlib
import importlib.util
import os.path as osp
import sys
from importlib.machinery import ExtensionFileLoader

from mmengine.config.utils import MODULE2PACKAGE

from ..utils import UserError, first_line
from ..version import MMCV_LITE, mmcv_distributions


def find_package(codebase: str) -> str:
    """The path of an installed codebase's ``__init__.py``; raises UserError where there is none."""
    path = getattr(importlib.util.find_spec(codebase), 'origin', None)  # None for a folder of that name
    if path is None:
        package = MODULE2PACKAGE.get(codebase, codebase)
        command = f'pip install {MMCV_LITE}' if codebase == 'mmcv' else f'mim install {package}'
        raise UserError(f'{codebase} is not installed: "{command}", or see "Install" in the README')
    return path


def find_shipped(codebase: str, file: str) -> str:
    """The path of a file that an installed codebase ships with its package, e.g. ``'tools/train.py'``.

    Raises:
        UserError: If the codebase is not installed, or without that file.
    """
    root = osp.dirname(find_package(codebase))
    for place in (osp.join(root, '.mim'), osp.dirname(root)):  # a wheel, an editable checkout
        path = osp.join(place, file)
        if osp.isfile(path):
            return path
    raise UserError(f'{codebase} in {root} came without {file}: install its wheel, or its checkout in editable mode')


def check_mmcv_ops(codebase: str) -> None:
    """Checks that a codebase and MMCV are installed, and that MMCV's operators can be used.

    Raises:
        UserError: If not.
    """
    find_package(codebase)
    find_package('mmcv')
    installed = mmcv_distributions()
    if len(installed) > 1:
        names = ' and '.join(f'{name} {version}' for name, version in installed.items())
        print(
            f'warning: {names} are installed over each other, each with files of the other: '
            f'pip uninstall -y {" ".join(installed)}, then install one of them',
            file=sys.stderr,
        )
    try:
        import mmcv.ops

        compiled = isinstance(mmcv._ext.__loader__, ExtensionFileLoader)
    except ImportError as error:
        try:
            importlib.import_module(f'{codebase}.models')  # some import operators only where they use them
        except ImportError:
            raise UserError(f'{codebase} needs the operators of MMCV: {first_line(error)}') from error
    else:
        if codebase == 'mmdet' and not compiled:
            from .operators.common import torchvision_operators

            torchvision_operators()
