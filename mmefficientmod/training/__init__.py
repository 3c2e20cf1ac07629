"""Training: its start, the checks before it, hooks, optimisers, several processes."""

from __future__ import annotations
