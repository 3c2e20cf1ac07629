"""How a tool ends: with one line and an exit code after bad input, an error of the system or a signal."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from .errors import UserError, first_line

STDOUT = 1  # its number


class Stopped(KeyboardInterrupt):
    """The process got a signal to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def run_tool(main: Callable[[], Any]) -> None:
    """Calls the function of a command line as :func:`exit_in_one_line` says, without MMEngine's warnings of setuptools.

    Args:
        main (Callable): Prints to the standard output.
    """
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files are any bytes
    try:
        with exit_in_one_line():
            try:
                main()
            except SystemExit as end:
                if end.code:
                    raise
            _flush()
    finally:
        try:
            _flush()
        except OSError:  # Python would try once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)


def _flush() -> None:
    if sys.stdout:  # None where it was closed before the start
        sys.stdout.flush()


@contextlib.contextmanager
def exit_in_one_line(stopped: str = 'stopped') -> Iterator[None]:
    """Ends a tool with one line and an exit code where bad input, the system or a signal ends it.

    The exit code is 1 for a :class:`UserError`, an error of the system or too little memory. Ctrl-C, SIGTERM and SIGHUP
    raise a KeyboardInterrupt in the work, and give 128 plus their number, as shells do. So does, without a line, a
    program that reads the output and ends first, as ``head`` does. Programming errors keep their traceback.

    Args:
        stopped (str): The line after a signal. Defaults to ``'stopped'``.

    Raises:
        SystemExit: With the line, which Python prints, or with the exit code.
    """

    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        raise Stopped(number)

    try:
        with handle_signals(stop):
            yield
    except KeyboardInterrupt as error:
        print(stopped, file=sys.stderr)
        raise SystemExit(getattr(error, 'exit_code', 128 + signal.SIGINT)) from None
    except UserError as error:
        raise SystemExit(f'error: {error}') from None
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            raise SystemExit(128 + signal.SIGPIPE) from None
        where = f'{error.filename}: ' if error.filename else ''
        raise SystemExit(f'error: {where}{error.strerror or first_line(error)}') from None
    except MemoryError as error:
        raise SystemExit(f'error: out of memory ({first_line(error) or "MemoryError"})') from None
    except Exception:
        if not signals:
            raise
        print(stopped, file=sys.stderr)  # a library made an error of its own of the interrupt, as MMEngine does
        raise SystemExit(128 + signals[0]) from None


def _is_unread() -> bool:
    """Whether the program that reads the standard output has ended."""
    if not hasattr(select, 'poll'):  # on Windows
        return False
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]  # not on Windows
_in_forked: list[Callable[[], None]] = []  # what a forked process does, for each call of handle_signals
_mask = threading.local()


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, Any], Any], in_forked: Callable[[], None] | None = None) -> Iterator[None]:
    """Handles Ctrl-C, SIGTERM and SIGHUP where the main thread calls it; ignored ones (nohup) stay ignored.

    Processes that a library forks meanwhile, such as the pool of a metric, do not have the handler: it would keep
    them alive, and Python runs none while a process waits.

    Args:
        handler (Callable): A handler as :func:`signal.signal` takes it.
        in_forked (Callable, optional): What forked processes do. Defaults to nothing: the signals end them.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        kept = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in kept}
    _in_forked.append(in_forked or (lambda: None))
    try:
        yield
    finally:
        _in_forked.pop()
        for number, old in before.items():
            signal.signal(number, old)


def _before_fork() -> None:
    # A signal between the fork and the end of the handler would be lost.
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _in_forked else None


def _after_fork() -> None:
    if _mask.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _after_fork_in_child() -> None:
    if not _in_forked:
        return
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _after_fork()
    _in_forked[-1]()
    _in_forked.clear()


if hasattr(os, 'register_at_fork'):  # not on Windows
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
