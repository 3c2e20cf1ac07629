"""Small helpers for files, errors and command lines; they need neither torch nor an MM library."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Names that images have. Whether one can be read is seen when it is: OpenCV's builds differ.
IMAGE_SUFFIXES = (
    *('.avif', '.bmp', '.gif', '.heic', '.heif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png'),
    *('.pnm', '.ppm', '.tif', '.tiff', '.webp'),
)


class UserError(RuntimeError):
    """An error for the user; the message is one line that says what is wrong and what to do."""


def replace_file(path: Path, content: str | bytes | memoryview, durable: bool = True) -> None:
    """Writes a file in one step: a kill or a full disk leaves the old content or the new one, never half of it.

    Args:
        path (Path): The file.
        content (str, bytes or memoryview): Text is written as UTF-8.
        durable (bool): Wait until the disk has it, against a loss of power. Defaults to True.

    Raises:
        OSError: If it cannot be written. The old content is left.
    """
    draft = path.with_name(f'.{path.name}')
    try:
        with open(draft, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if not isinstance(error, OSError):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk's error names no file


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), '')


def describe_error(error: BaseException) -> str:
    """An error in one line, with its type."""
    return f'{type(error).__name__}: {first_line(error)}'


def enumerate_names(names: Iterable, most: int = 6) -> str:
    """The first names of many, separated by commas; 'none' if there are none."""
    shown = [str(name) for name in names]
    return ', '.join(shown[:most]) + (', ...' if len(shown) > most else '') if shown else 'none'


def read_json(path: Path) -> Any:
    """The content of a JSON file that a user names.

    Raises:
        UserError: If the file does not exist or holds something else. A pipe is refused unread: it may never end.
    """
    if not path.is_file():
        raise UserError(f'{path} ' + ('is not a regular file' if path.exists() else 'does not exist'))
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not a JSON file that can be read ({describe_error(error)})') from None


def render_page(template: Path, **values: Any) -> str:
    """A page in HTML from a template of Jinja, which escapes the values."""
    import jinja2

    loader = jinja2.FileSystemLoader(template.parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template.name).render(**values)


def check_output_folder(path: Path, option: str = '--out') -> None:
    """Finds out before the work whether files can be written into a folder. It makes the folder and removes it again.

    Raises:
        UserError: If not, with the reason.
    """
    made: list[Path] = []
    folder = path
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or first_line(error)
        if isinstance(error, FileExistsError):  # a link that leads nowhere, too
            reason = f'{folder} is not a folder'
        raise UserError(f'{option} {path} cannot be written: {reason}. Name another folder') from None
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # another process has written into it
                folder.rmdir()


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers of the two settings, from malloc.h
LARGEST_THRESHOLD = 32 << 20  # bytes; glibc refuses more


def keep_freed_memory() -> bool:
    """Lets glibc keep the memory that this process frees; results do not change.

    By default glibc takes large maps from the system in each pass and gives them back, and the system clears them page
    by page. Nothing is changed where another C library is used, or where the environment sets glibc's allocator.

    Returns:
        bool: Whether freed memory is kept.
    """
    given = [name for name in os.environ if name.startswith('MALLOC_')]
    if platform.libc_ver()[0] != 'glibc' or given or 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', ''):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


class Stopped(KeyboardInterrupt):
    """The process got a signal to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def exit_in_one_line(stopped: str = 'stopped') -> Iterator[None]:
    """Ends a tool with one line and an exit code where bad input, the system or a signal ends it.

    The exit code is 1 for a :class:`UserError`, an error of the system or too little memory. Ctrl-C, SIGTERM and SIGHUP
    raise a KeyboardInterrupt in the work, and give 128 plus their number, as shells do. Programming errors keep their
    traceback.

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
        where = f'{error.filename}: ' if error.filename else ''
        raise SystemExit(f'error: {where}{error.strerror or first_line(error)}') from None
    except MemoryError as error:
        raise SystemExit(f'error: out of memory ({first_line(error) or "MemoryError"})') from None
    except Exception:
        if not signals:
            raise
        print(stopped, file=sys.stderr)  # a library made an error of its own of the interrupt, as MMEngine does
        raise SystemExit(128 + signals[0]) from None


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


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Drops what libraries log below an error."""
    before = logging.root.manager.disable
    _disable_logs(logging.WARNING)
    try:
        yield
    finally:
        _disable_logs(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what libraries print, log below an error and warn of; what they raise passes."""
    with quiet_logs():
        out, errors = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with out, errors, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield


def _disable_logs(level: int) -> None:
    logging.disable(level)
    mmengine: Any = sys.modules.get('mmengine.logging')
    if mmengine:
        # Made here if there is none: one that is made while stdout is redirected would write there for ever.
        logger = mmengine.MMLogger.get_current_instance()
        logger.setLevel(logger.level)  # its loggers remember what was enabled, where logging.disable() cannot reach it


# Types of argparse ---------------------------------------------------------------------------------------------------

LARGEST_SIDE = 16384  # pixels; an image of such a height and width has 256 megapixels


def parse_text(text: str) -> str:
    """A text that is not empty, as that of an unset shell variable is."""
    if not text.strip() or '\0' in text:
        raise argparse.ArgumentTypeError(f'the value {text!r} is empty: give one, or leave out the option')
    return text


def parse_path(text: str) -> Path:
    """A path that is not empty: an empty one would be the current folder."""
    return Path(parse_text(text))


def parse_whole(text: str, least: int = 0, most: int = 1_000_000) -> int:
    """A whole number within bounds."""
    if not re.fullmatch(r'-?[0-9]{1,18}', text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {least} to {most}')
    return int(text)


def parse_positive(text: str) -> int:
    """A whole number of 1 or more."""
    return parse_whole(text, 1)


def parse_share(text: str) -> float:
    """A number from 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 1')


def parse_amount(text: str) -> float:
    """A number above 0; neither infinite nor NaN."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels of ``800x1333`` or ``512``."""
    match = re.fullmatch(r'([0-9]{1,9})(?:x([0-9]{1,9}))?', text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 32 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
        bounds = f'from 32 to {LARGEST_SIDE} pixels each'
        raise argparse.ArgumentTypeError(f'{text!r} is not a size: give HEIGHTxWIDTH, {bounds}')
    return height, width


def is_complete_key(key: str) -> bool:
    """Whether each part of a dotted key of a config has a name."""
    return all(part.strip() for part in key.split('.'))


class HelpFormatter(argparse.HelpFormatter):
    """Wraps a tool's description and epilog, and keeps lines that begin with a space, such as examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        texts = []
        for is_kept, group in itertools.groupby(text.splitlines(), key=lambda line: line[:1] in ('', ' ')):
            block = '\n'.join(group)
            texts.append(block if is_kept else super()._fill_text(block, width, indent))
        return '\n'.join(texts)
