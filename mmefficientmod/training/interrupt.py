"""Ctrl-C and SIGTERM in a training: its state is saved first, and the run ends with the command that resumes it.

Slurm sends SIGTERM before a time limit and with ``scancel``, spot machines before they go.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from threading import Thread
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch.utils.data import DataLoader

from ..utils import SIGNALS, Stopped, handle_signals

PATIENCE = 3.0  # s after which another signal ends the run without saving: launchers send the first one twice


class Interruption:
    """Records the signals that ask a training to end.

    Attributes:
        number (int): The first signal that came, 0 without any.
    """

    def __init__(self) -> None:
        self.number = 0
        self._time = 0.0

    def during(self, run: Callable[[], Any]) -> Any:
        """Calls a function with the handlers in place, and sets those that were there before at its end."""
        with handle_signals(self._receive, obey_parent):
            return run()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number and now - self._time > PATIENCE:
            raise Stopped(number)
        if not self.number:
            self.number, self._time = number, now
            print('the run was asked to end: its state is saved after this step', file=sys.stderr, flush=True)

    def agree(self) -> int:
        """The signal that came to any of the processes, 0 without any; all of them must call it."""
        if get_world_size() == 1:
            return self.number
        number = torch.tensor(self.number)
        all_reduce(number, 'max')
        return int(number)


class DeafWorker:
    """Starts a process that loads data: there the main process decides when the work ends, no signal to the group.

    Args:
        start (Callable, optional): What the data loader called before.
    """

    def __init__(self, start: Callable | None) -> None:
        self.start = start

    def __call__(self, worker: int) -> None:
        obey_parent()
        if self.start:
            self.start(worker)


def obey_parent() -> None:
    """Lets only the parent's SIGTERM end this process, as data loaders and pools send it."""
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # on Linux; elsewhere SIGTERM to the group ends the process as well
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_obey, args=[os.getppid()], daemon=True).start()


def _obey(parent: int) -> None:
    """Waits for SIGTERM from the parent, and ends the process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def protect_workers(loader: DataLoader) -> None:
    """Keeps the processes that load data alive while the state is saved; those that run already are not changed."""
    if loader.num_workers and not isinstance(loader.worker_init_fn, DeafWorker):
        loader.worker_init_fn = DeafWorker(loader.worker_init_fn)


_command: list[str] = []


def set_command(argv: Sequence[str]) -> None:
    """Notes the command line of the run, which a codebase's script replaces by its own."""
    _command[:] = argv


def resume_command() -> str:
    """The command that resumes this run; in words where a launcher started the process."""
    words = _command or [sys.executable, *sys.argv]
    if get_world_size() > 1 or any(word.startswith('--launcher') for word in words):
        return 'the command that started it, with --resume'
    kept, follows = [], False
    for word in words:
        is_path = follows and not word.startswith('-')
        follows = word == '--resume'
        # A checkpoint that the command line names would be resumed again.
        if not (is_path or follows or word.startswith(('--resume=', 'load_from='))):
            kept.append(word)
    return shlex.join([*kept, '--resume'])
