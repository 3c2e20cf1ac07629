"""The MM libraries: whether they are usable, their configs, building their models."""

from __future__ import annotations
