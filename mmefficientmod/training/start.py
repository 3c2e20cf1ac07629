"""Decides where a training starts: with the state of a checkpoint (``resume``) or only with its weights."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping

from mmengine.config import Config

from ..checkpoints.newest import NEEDED, Choice, find_newest_whole
from ..checkpoints.reading import read_checkpoint
from ..utils import UserError


def choose_start(config: Config, written: Mapping, resumed: str | None = None, loaded: str | None = None) -> Choice:
    """Sets ``resume`` and ``load_from`` of a training that is to be resumed.

    The first of these that there is decides:

    1. the checkpoint that the command line names: ``--resume PATH``, or ``--resume --cfg-options load_from=PATH``
       where PATH holds the state of a training;
    2. the newest complete checkpoint of the work directory;
    3. ``load_from``: its weights at iteration 0, as in the first start of the training; where the config file sets
       ``resume=True`` as well, its state, as in MMEngine;
    4. the beginning.

    The codebases' scripts differ: MMDetection's and MMPreTrain's remove the config's ``load_from`` where ``--resume``
    is given, MMSegmentation's keeps it and MMEngine then resumes from there.

    Args:
        config (Config): As the codebase's script passes it to the runner; changed in place.
        written (Mapping): The config file, without the command line.
        resumed (str, optional): The path that the command line names with ``--resume``.
        loaded (str, optional): The path that the command line names with ``load_from``.

    Returns:
        Choice: The complete checkpoint of the work directory that was chosen, None if another one was, and lines for
        the log.

    Raises:
        UserError: If ``resumed`` cannot be resumed from, or if the work directory has checkpoints but none is complete.
    """
    if not config.get('resume') and not written.get('resume'):
        return Choice(None, [])
    if resumed:
        problem = find_problem(resumed)
        if problem:
            raise UserError(f'{problem}; to start with its weights, leave out --resume: --cfg-options load_from=PATH')
    elif loaded and not find_problem(loaded):
        resumed = loaded
    if resumed:
        config.resume, config.load_from = True, resumed
        return Choice(None, [f'resuming from {resumed}, which the command line names'])
    newest = find_newest_whole(config.work_dir)
    if newest.path:
        config.resume, config.load_from = True, newest.path
        return Choice(newest.path, [*newest.notes, f'resuming from {newest.path}'])
    start = loaded or written.get('load_from')
    config.load_from = start
    config.resume = bool(start and written.get('resume') and start == written.get('load_from'))
    if config.resume:
        return Choice(None, [f'{config.work_dir} holds no checkpoint: resuming from load_from, {start}'])
    if start:
        return Choice(
            None, [f'{config.work_dir} holds no checkpoint: starting at iteration 0 with the weights of {start}']
        )
    return newest


def find_problem(path: str) -> str | None:
    """Why a training cannot be resumed from a checkpoint, None if it can; folders and addresses are not judged."""
    if '://' in path or osp.isdir(osp.expanduser(path)):
        return None
    checkpoint = read_checkpoint(path, mmap=True, check=False)
    missing = [key for key in NEEDED if not isinstance(checkpoint.get(key), Mapping)]
    return f'{path} holds no {missing[0]}, so that no training can be resumed from it' if missing else None


def read_config_file(config: Config) -> Mapping:
    """The file that a config was read from, without the command line; empty if it cannot be read any more."""
    try:
        return Config.fromfile(config.filename, import_custom_modules=False)
    except Exception:  # no file, or a program that raises whatever it likes
        return {}
