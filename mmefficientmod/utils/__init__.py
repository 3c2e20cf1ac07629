"""Helpers for errors, files, logs, signals and command lines; they need neither torch nor an MM library."""

from __future__ import annotations

from .arguments import (
    LARGEST_SIDE,
    HelpFormatter,
    is_complete_key,
    parse_amount,
    parse_path,
    parse_positive,
    parse_share,
    parse_size,
    parse_text,
    parse_whole,
)
from .errors import UserError, describe_error, enumerate_names, first_line
from .files import IMAGE_SUFFIXES, check_output_folder, is_utf8, read_json, render_page, replace_file
from .logs import quiet, quiet_logs
from .memory import keep_freed_memory
from .signals import SIGNALS, Stopped, exit_in_one_line, handle_signals, run_tool

__all__ = [
    'IMAGE_SUFFIXES',
    'LARGEST_SIDE',
    'SIGNALS',
    'HelpFormatter',
    'Stopped',
    'UserError',
    'check_output_folder',
    'describe_error',
    'enumerate_names',
    'exit_in_one_line',
    'first_line',
    'handle_signals',
    'is_complete_key',
    'is_utf8',
    'keep_freed_memory',
    'parse_amount',
    'parse_path',
    'parse_positive',
    'parse_share',
    'parse_size',
    'parse_text',
    'parse_whole',
    'quiet',
    'quiet_logs',
    'read_json',
    'render_page',
    'replace_file',
    'run_tool',
]
