"""Starts the training or testing script of a config's codebase, and checks the final config before anything is built.

The script parses the command line and merges it into the config; :mod:`.checks.run` checks the result.
"""

from __future__ import annotations

import importlib.util
import os
import os.path as osp
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config

from ..checkpoints.newest import Choice
from ..codebases.config import (
    CODEBASES,
    CONFIG_SUFFIXES,
    find_codebase,
    find_config,
    load_config,
)
from ..codebases.packages import check_mmcv_ops, find_shipped
from ..utils import UserError
from .checks.data import WatchedLoaders, check_data
from .checks.loaders import fit_workers
from .checks.run import PARTS, check_run, choose_checkpoint, drop_needless_pretrained
from .cpu import start_on_cpu

NO_DATA_CHECKS = '--no-data-checks'
RANK_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


def launch(script: str, argv: Sequence[str] | None = None) -> None:
    """Runs the training or testing script of the config's codebase in this process, with every argument passed on.

    Args:
        script (str): ``'train'`` or ``'test'``.
        argv (Sequence[str], optional): The command line without the program. Defaults to ``sys.argv[1:]``.

    Raises:
        SystemExit: With one line that names the fix, if the config, the data, a checkpoint or MMCV cannot be used.
    """
    given_argv = list(sys.argv[1:] if argv is None else argv)
    argv = [arg for arg in given_argv if arg != NO_DATA_CHECKS]
    data = argv == given_argv
    if not argv or argv[0] in ('-h', '--help'):
        operands = 'CONFIG CHECKPOINT' if script == 'test' else 'CONFIG'
        print(
            f'usage: python tools/{script}.py {operands} [ARGUMENT ...]\n\n'
            f"Runs tools/{script}.py of the codebase that the config's default_scope names "
            f'({", ".join(CODEBASES)}) with these very arguments.\n'
            f'{NO_DATA_CHECKS} starts without a look at the data (docs/data-checks.md).\n'
            f'Its own help: python tools/{script}.py CONFIG --help'
        )
        raise SystemExit(0 if argv else 2)
    with _refusing():
        place = find_config_argument(argv)
        given, argv[place] = argv[place], find_config(argv[place])
        codebase = find_codebase(load_config(argv[place]), argv[place], script)
        path = find_shipped(codebase, f'tools/{script}.py')
        check_mmcv_ops(codebase)
        if script == 'test' and not {'-h', '--help'} & set(argv) and all(arg.startswith('-') for arg in argv[1:]):
            raise UserError('tools/test.py needs a checkpoint after the config')
        tool = _load_script(path)
        sys.argv = [path, *argv]
        sys.path[0] = osp.dirname(path)
        _parse(tool, argv[place])
    notes = [f'config {given} is {argv[place]}'] if given != argv[place] else []
    # The scripts build their runner by one of these two, once the command line is part of the config.
    tool.Runner = SimpleNamespace(from_cfg=_checked(tool.Runner.from_cfg, script, notes, data))
    if hasattr(tool, 'RUNNERS'):
        tool.RUNNERS = SimpleNamespace(build=_checked(tool.RUNNERS.build, script, notes, data))
    with _refusing():  # weights are read, and compared with the model, when it is there
        try:
            tool.main()
        except FileNotFoundError as error:  # one that loads data in a process of its own comes behind its traceback
            raise UserError(str(error).strip().rpartition('\n')[2]) from None


def _checked(build: Callable, script: str, notes: Sequence[str], data: bool) -> Callable:
    """``build``, the maker of the runner, after the checks of its config.

    One process of a distributed job checks and prints; where it refuses, the job's launcher ends the others.
    """

    def check_and_build(config: Config) -> object:
        with _refusing():
            chosen = choose_checkpoint(config) if script == 'train' else Choice(None, [])
            changes = [*chosen.notes, *(drop_needless_pretrained(config) if script == 'train' else ())]
            fit_workers(config, PARTS[script])
            is_main = is_main_process(config.get('launcher', 'none'))
            if is_main:
                for line in (*notes, *changes):
                    print(line)
                check_run(script, config, chosen.path)
                if data:
                    check_data(config, PARTS[script])
            problem = start_on_cpu(config)
            if problem:
                raise UserError(problem)
            runner = _build(build, config)
            if is_main:
                WatchedLoaders(runner, config, PARTS[script], data)
            return runner

    return check_and_build


def _build(build: Callable, config: Config) -> object:
    try:
        return build(config)
    except KeyError as error:
        if 'registry' not in str(error):
            raise
        raise UserError(f'the config names what is not there: {error.args[0]}') from error


@contextmanager
def _refusing() -> Iterator[None]:
    """Ends the program with the one line of an error that says what to do."""
    try:
        yield
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(f'error: {error}') from None


def find_config_argument(argv: Sequence[str]) -> int:
    """The position of the config: the first argument, or the first config file if options come first.

    Raises:
        UserError: If there is none.
    """
    if not argv[0].startswith('-'):
        return 0
    found = next((i for i, arg in enumerate(argv) if arg.endswith(CONFIG_SUFFIXES) and osp.isfile(arg)), None)
    if found is None:
        raise UserError('no config is given: the first argument is the path of a config file')
    return found


def is_main_process(launcher: str) -> bool:
    """Whether this process is the only one, or the first of those that ``launcher`` started."""
    return os.environ.get(RANK_VARIABLES.get(launcher, ''), '0') == '0'


def _load_script(path: str) -> Any:
    """The script as a module, the names of which may be replaced."""
    spec = importlib.util.spec_from_file_location('codebase_script', path)
    assert spec and spec.loader, path  # as for every path that ends in .py
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def _parse(tool: Any, config: str) -> None:
    """Lets the script's own parser judge ``sys.argv`` and show its help, then merges the config's overrides once."""
    try:
        args = tool.parse_args()
    except (ValueError, AssertionError, RecursionError) as error:  # from DictAction
        raise UserError(f'--cfg-options takes KEY=VALUE pairs, and CONFIG comes before it ({error})') from error
    if args.config != config:
        raise UserError(f'is {config} or {args.config} the config? Put it before the options')
    load_config(args.config, args.cfg_options)
