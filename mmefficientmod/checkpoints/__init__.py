"""Checkpoints: safe reading, names, weights, loading, the newest of a work directory."""

from __future__ import annotations
