"""Checks of a config before a training or a test starts."""

from __future__ import annotations
