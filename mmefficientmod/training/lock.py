"""One training at a time in a work directory: two would overwrite each other's checkpoints."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from ..utils import UserError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = '.training'  # the file that is locked; it says who holds it
_held: dict[Path, IO[str]] = {}  # by this process


def lock_work_dir(work_dir: str | os.PathLike) -> None:
    """Locks a work directory until :func:`unlock_work_dirs`, or until this process ends.

    Processes that load data do not inherit the lock.

    Raises:
        UserError: If another process trains in it, or no file can be written there.
    """
    folder = Path(work_dir).resolve()
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / NAME, 'a+', encoding='utf-8')  # noqa: SIM115 - open as long as it is locked
    except OSError as error:
        raise UserError(
            f'the work directory {work_dir} cannot be written ({error.strerror}): name another --work-dir'
        ) from None
    try:
        _lock(file)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.seek(0)
            holder = file.read().strip() or 'another process'
            raise UserError(
                f'{work_dir} belongs to a training that is running ({holder}): wait for its end, stop it, or name '
                'another --work-dir'
            ) from None
        # A file system without locks: nothing to go by.
    else:
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()} since {time.strftime("%Y-%m-%d %H:%M:%S")}')
        file.flush()
    _held[folder] = file


def unlock_work_dirs() -> None:
    """Leaves the work directories of this process to others: a notebook lives on after its training."""
    while _held:
        _held.popitem()[1].close()


def _lock(file: IO[str]) -> None:
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        file.seek(0x7FFFFFF0)  # far behind the text: Windows lets nobody read what is locked
        getattr(msvcrt, 'locking')(file.fileno(), getattr(msvcrt, 'LK_NBLCK'), 1)  # noqa: B009
