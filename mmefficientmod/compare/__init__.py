"""Trains and tests backbones in the same setting, and compares the results with the published values."""

from __future__ import annotations
