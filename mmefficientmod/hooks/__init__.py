"""Hooks for long trainings with any MM codebase: exact resuming, checkpoints that are whole, a stop at NaN."""

from __future__ import annotations

from .exact_resume import ExactResumeHook
from .finite_loss import FiniteLossHook
from .safe_checkpoint import SafeCheckpointHook

__all__ = ['ExactResumeHook', 'FiniteLossHook', 'SafeCheckpointHook']
