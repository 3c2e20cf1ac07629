"""Puts MMCV's operators in place for programs that import an MM library without this package.

``--install`` writes one small file into the folder of MMCV, ``_ext.py``, which imports the operators from this package.
pip does not know of that file: it stays behind when MMCV is uninstalled, and needs this package to be installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ...utils import HelpFormatter, UserError, exit_in_one_line, replace_file, run_tool
from ...version import MMCV_LITE, mmcv_distributions
from . import EXTENSION
from .common import torchvision_operators

_MARK = '# Written by "python -m mmefficientmod.codebases.operators --install"; --uninstall removes it.\n'
_SOURCE = f"""{_MARK}
try:
    from mmefficientmod.codebases.operators import find as __getattr__
except ImportError as error:
    raise ImportError(f'{{__file__}} needs mmefficientmod ({{error}}): install it, or remove that file') from error
"""


EPILOG = """\
examples:
  python -m mmefficientmod.codebases.operators --install
  mim run mmefficientmod operators --status"""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        SystemExit: With one line, if there is nothing that can be done.
    """
    parser = argparse.ArgumentParser(
        prog='python -m mmefficientmod.codebases.operators',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument('--install', action='store_const', dest='run', const=install, help='write mmcv/_ext.py')
    action.add_argument('--uninstall', action='store_const', dest='run', const=uninstall, help='remove that file')
    action.add_argument('--status', action='store_const', dest='run', const=status, help='say which operators are used')
    run = parser.parse_args(argv).run
    with exit_in_one_line():
        print(run())


def install() -> str:
    """Writes ``mmcv/_ext.py``; says what was done.

    Raises:
        UserError: If MMCV is missing or has compiled operators, or the file there is from someone else.
    """
    file = _file()
    compiled = _compiled(file.parent)
    if compiled:
        _import_operators()
        raise UserError(f'MMCV has compiled operators, {compiled}: nothing is installed')
    if _is_ours(file) and file.read_text(encoding='utf-8') == _SOURCE:
        return f'{file} is in place already'
    replace_file(file, _SOURCE)
    return f'{file} is written: MMCV now runs with the operators of mmefficientmod in every program'


def uninstall() -> str:
    """Removes ``mmcv/_ext.py``; says what was done.

    Raises:
        UserError: If it was not written by this package.
    """
    file = _file()
    if not _is_ours(file):
        return f'{file} does not exist: there is nothing to remove'
    for path in (*file.parent.glob('__pycache__/_ext.*.pyc'), file):
        path.unlink()
    return f'{file} is removed'


def status() -> str:
    """Says which operators MMCV runs with, and whether they can be used.

    Raises:
        UserError: If they cannot.
    """
    file = _file()
    found = ' and '.join(f'{name} {version}' for name, version in mmcv_distributions().items()) or 'MMCV'
    where = f'{found} in {file.parent}'
    compiled = _compiled(file.parent)
    if compiled:
        _import_operators()
        return f'{where}: compiled operators, {compiled.name}'
    torchvision_operators()
    if _is_ours(file):
        return f'{where}: operators of mmefficientmod in every program, by {file.name}'
    return f'{where}: operators of mmefficientmod in programs that import it before an MM library'


def _file() -> Path:
    spec = importlib.util.find_spec('mmcv')
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'mmcv is not installed: pip install {MMCV_LITE}')
    return Path(next(iter(spec.submodule_search_locations)), f'{EXTENSION.rpartition(".")[2]}.py')


def _compiled(folder: Path) -> Path | None:
    files = (folder / f'_ext{suffix}' for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)


def _import_operators() -> None:
    try:
        importlib.import_module(EXTENSION)
    except ImportError as error:
        raise UserError(str(error)) from error


def _is_ours(file: Path) -> bool:
    """Whether the file exists; raises UserError where it is not one that this package wrote."""
    if not file.exists():
        return False
    if not file.read_text(encoding='utf-8', errors='replace').startswith(_MARK):
        raise UserError(f'{file} was not written by mmefficientmod, and is left as it is')
    return True


if __name__ == '__main__':
    run_tool(main)
