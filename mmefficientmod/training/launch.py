"""Starts the training or testing script of a config's codebase, and checks the final config before anything is built.

The script parses the command line and merges it into the config; :mod:`.checks.run` checks the result.
"""

from __future__ import annotations

import importlib.util
import os
import os.path as osp
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config

from ..checkpoints.newest import Choice
from ..codebases.config import (
    CONFIG_SUFFIXES,
    find_codebase,
    find_config,
    load_config,
)
from ..codebases.nodes import has_own_code
from ..codebases.packages import check_mmcv_ops, find_shipped
from ..utils import UserError, check_output_folder, exit_in_one_line, first_line, is_complete_key, keep_freed_memory
from .checks.data import WatchedLoaders, check_data
from .checks.loaders import fit_workers
from .checks.run import PARTS, check_parts, check_run, drop_needless_pretrained
from .cpu import start_on_cpu
from .hooks import WholeModelHook
from .interrupt import set_command
from .lock import lock_work_dir, unlock_work_dirs
from .start import choose_start

NO_DATA_CHECKS = '--no-data-checks'
STOPPED = {
    'train': 'stopped without saving: --resume continues from the last checkpoint, or starts again',
    'test': 'stopped: no metrics were written',
}  # what a signal interrupts
RANK_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


HELP = """\
usage: python tools/{script}.py {operands} [OPTION ...]

{work} with the script of MMDetection, MMSegmentation or MMPreTrain, after checks of the run and its data. The config's
default_scope names the library. Its script takes the options; python tools/{script}.py CONFIG --help lists them.
One option is added:

  --no-data-checks  start without looking at the data (docs/data-checks.md)

examples:
{examples}"""
HELP_OF = {
    'train': dict(
        operands='CONFIG',
        work='Trains a config',
        examples='  python tools/train.py CONFIG --cfg-options auto_scale_lr.enable=True\n'
        '  python tools/train.py CONFIG --work-dir work_dirs/mine --resume',
    ),
    'test': dict(
        operands='CONFIG CHECKPOINT',
        work='Tests a checkpoint',
        examples='  python tools/test.py CONFIG work_dirs/mine/epoch_12.pth\n'
        '  python tools/test.py CONFIG CHECKPOINT --cfg-options test_dataloader.batch_size=4',
    ),
}


def launch(script: str, argv: Sequence[str] | None = None) -> None:
    """Runs the training or testing script of the config's codebase in this process, with every argument passed on.

    Args:
        script (str): ``'train'`` or ``'test'``.
        argv (Sequence[str], optional): The command line without the program. Defaults to ``sys.argv[1:]``.

    Raises:
        SystemExit: With one line that names the fix, if the config, the data, a checkpoint or MMCV cannot be used.
    """
    set_command([sys.executable, *sys.argv])
    given_argv = list(sys.argv[1:] if argv is None else argv)
    argv = [arg for arg in given_argv if arg != NO_DATA_CHECKS]
    data = argv == given_argv
    if not argv or argv[0] in ('-h', '--help'):
        print(HELP.format(script=script, **HELP_OF[script]))
        raise SystemExit(0 if argv else 2)
    keep_freed_memory()
    with exit_in_one_line(STOPPED[script]):
        place = find_config_argument(argv)
        given, argv[place] = argv[place], find_config(argv[place])
        config_file = argv[place]
        written = load_config(config_file)
        codebase = find_codebase(written, config_file, script)
        path = find_shipped(codebase, f'tools/{script}.py')
        check_mmcv_ops(codebase)
        if script == 'test' and not {'-h', '--help'} & set(argv) and all(arg.startswith('-') for arg in argv[1:]):
            raise UserError('tools/test.py needs a checkpoint after the config')
        resumed = _take_resumed(argv, config_file) if (codebase, script) == ('mmseg', 'train') else None
        tool = _load_script(path)
        with _running_as(path, argv):
            args = _parse(tool, config_file)
            choose = None
            if script == 'train':
                resumed = resumed or (args.resume if args.resume not in (None, True, False, 'auto') else None)
                loaded = (args.cfg_options or {}).get('load_from')
                choose = partial(choose_start, written=written, resumed=resumed, loaded=loaded)
            notes = [f'config {given} is {config_file}'] if given != config_file else []
            # The scripts build their runner with one of these two, once the command line is part of the config.
            made: list = []
            tool.Runner = SimpleNamespace(from_cfg=_checked(tool.Runner.from_cfg, script, choose, notes, data, made))
            if hasattr(tool, 'RUNNERS'):
                tool.RUNNERS = SimpleNamespace(build=_checked(tool.RUNNERS.build, script, choose, notes, data, made))
            try:
                tool.main()
            except FileNotFoundError as error:
                raise UserError(_last_line(error)) from None
            except (OSError, MemoryError, UserError):
                raise
            except Exception as error:
                if _is_interrupt(error) or not _is_about_settings(*made):
                    raise
                raise UserError(f'the config cannot be used: {_describe(error, *made)}') from None


@contextmanager
def _running_as(path: str, argv: Sequence[str]) -> Iterator[None]:
    """Makes this process look like ``python PATH ARGV``, and sets back at the end what a notebook goes on with."""
    before = sys.argv, list(sys.path)
    sys.argv, sys.path[0] = [path, *argv], osp.dirname(path)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before
        unlock_work_dirs()


def _is_about_settings(config: Config | None = None, runner: Any = None) -> bool:
    """Whether an error comes from a setting: before the end of the first iteration, without code of the user's own."""
    begun = runner and any(name.endswith('/time') for name in runner.message_hub.log_scalars)  # of an iteration
    return config is not None and not has_own_code(config) and not begun


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a library made an error of its own of a signal, as MMEngine does."""
    return isinstance(error, KeyboardInterrupt) or (error is not None and _is_interrupt(error.__context__))


def _describe(error: Exception, config: Config, runner: Any = None) -> str:
    """The error in one line, and where its traceback is once there is a runner."""
    line = f'{type(error).__name__}: {_last_line(error) if "worker process" in str(error) else first_line(error)}'
    if runner is None:
        return line
    path = Path(runner.log_dir) / 'traceback.txt'
    with suppress(OSError):
        path.write_text(traceback.format_exc(), encoding='utf-8')
    return f'{line} (traceback in {path})'


def _last_line(error: Exception) -> str:
    """The message of an error; a process that loads data puts its traceback before it."""
    return str(error).strip().rpartition('\n')[2]


def _checked(
    build: Callable,
    script: str,
    choose: Callable[[Config], Choice] | None,
    notes: Sequence[str],
    data: bool,
    made: list,
) -> Callable[[Config], Any]:
    """``build``, the maker of the runner, after the checks of its config; ``made`` gets the config and the runner.

    One process of a distributed job checks and prints; where it refuses, the job's launcher ends the others.
    """

    def check_and_build(config: Config) -> Any:
        made.append(config)
        training, main = script == 'train', is_main_process(config.get('launcher', 'none'))
        check_parts(script, config)
        chosen = choose(config) if choose else Choice(None, [])
        changes = [*chosen.notes, *(drop_needless_pretrained(config) if training else ())]
        fit_workers(config, PARTS[script])
        if main:
            for line in (*notes, *changes):
                print(line)
            check_run(script, config, chosen.path)
            if data:
                check_data(config, PARTS[script])
        problem = start_on_cpu(config)
        if problem:
            raise UserError(problem)
        if training and main:  # after the checks: a run that is refused leaves no work directory
            lock_work_dir(config.work_dir)
        runner = _build(build, config)
        made.append(runner)
        if main:
            WatchedLoaders(runner, config, PARTS[script], data)
        if training:
            runner.start_is_chosen = True  # ExactResumeHook leaves it
        else:
            runner.register_hook(WholeModelHook())
        return runner

    return check_and_build


def _take_resumed(argv: list[str], config: str) -> str | None:
    """Takes the path after ``--resume`` out of a command line for MMSegmentation's script, which knows none there."""
    for number, word in enumerate(argv):
        if word.startswith('--resume='):
            argv[number] = '--resume'
            return word.partition('=')[2]
        following = argv[number + 1] if number + 1 < len(argv) else '-'
        if word == '--resume' and not following.startswith('-') and following != config:
            return argv.pop(number + 1)
    return None


def _build(build: Callable, config: Config) -> Any:
    try:
        return build(config)
    except KeyError as error:
        if 'registry' not in str(error):
            raise
        raise UserError(f'the config names what is not there: {error.args[0]}') from error


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


def _parse(tool: Any, config: str) -> Any:
    """Lets the script's own parser judge ``sys.argv`` and show its help, then merges the config's overrides once."""
    try:
        args = tool.parse_args()
    except (ValueError, AssertionError, RecursionError) as error:  # from DictAction
        raise UserError(f'--cfg-options takes KEY=VALUE pairs, and CONFIG comes before it ({error})') from error
    if args.config != config:
        raise UserError(f'is {config} or {args.config} the config? Put it before the options')
    load_config(args.config, args.cfg_options)
    _check_arguments(args)
    return args


def _check_arguments(args: Any) -> None:
    """Raises UserError before the work for an empty checkpoint, results that cannot be written and incomplete keys."""
    if not getattr(args, 'checkpoint', 'none').strip():
        raise UserError('the checkpoint is an empty text: name a checkpoint')
    for name in ('work_dir', 'out', 'show_dir'):
        option, text = f'--{name.replace("_", "-")}', getattr(args, name, None)
        if text is None:
            continue
        if not text.strip():
            raise UserError(f'{option} is empty: name a folder, or leave the option out')
        is_file = name == 'out' and text.endswith(('.pkl', '.pickle'))
        if is_file and osp.isdir(text):
            raise UserError(f'{option} {text} is a folder: name a file')
        check_output_folder(Path(text).parent if is_file else Path(text), option)
    for key in getattr(args, 'cfg_options', None) or {}:
        if not is_complete_key(key):
            raise UserError(f'--cfg-options takes KEY=VALUE pairs, and {key!r} is not a complete key')
