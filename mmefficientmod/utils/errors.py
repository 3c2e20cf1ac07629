"""The error for users, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(RuntimeError):
    """An error for the user; the message is one line that says what is wrong and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), '')


def describe_error(error: BaseException) -> str:
    """An error in one line, with its type: the first line, or the last where OpenVINO first says where in its code."""
    line = first_line(error)
    if line.startswith('Exception from '):
        line = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    return f'{type(error).__name__}: {line}'


def enumerate_names(names: Iterable, most: int = 6) -> str:
    """The first names of many, separated by commas; 'none' if there are none."""
    shown = [str(name) for name in names]
    return ', '.join(shown[:most]) + (', ...' if len(shown) > most else '') if shown else 'none'
