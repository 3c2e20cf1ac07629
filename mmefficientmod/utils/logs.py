"""Silences libraries."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


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
