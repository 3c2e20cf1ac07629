"""Trains and tests backbones alike, and puts what came out beside the published figures."""

from __future__ import annotations


class CompareError(RuntimeError):
    """What stops a backbone, or the whole comparison; the message is one line that says what to do."""
