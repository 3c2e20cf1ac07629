"""Small helpers for files, errors and command lines; they need neither torch nor an MM library."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from pathlib import Path


class UserError(RuntimeError):
    """An error for the user; the message is one line that says what is wrong and what to do."""


def replace_file(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Writes a file in one step: a kill or a full disk leaves the old content or the new one, never half of it.

    Args:
        path (Path): The file.
        content (str or bytes): Text is written as UTF-8.
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


def parse_positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number of 1 or more')
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels of ``800x1333`` or ``512``, for argparse."""
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if not match or min(int(side) for side in match.groups() if side) < 32:
        raise argparse.ArgumentTypeError(f'{text!r} is no size: give HEIGHTxWIDTH in pixels, at least 32 each')
    return int(match[1]), int(match[2] or match[1])


def parse_with_config_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses a command line with ``--cfg-options``; what MMEngine's DictAction raises is an error of the parser."""
    try:
        return parser.parse_args(argv)
    except (ValueError, AssertionError, RecursionError) as error:
        parser.error(f'--cfg-options takes KEY=VALUE pairs ({error})')
