"""Hooks for any MM codebase: exact resuming, checkpoints that are whole, a stop at NaN, the copy of the weights."""

from __future__ import annotations

from .exact_resume import ExactResumeHook
from .finite_loss import FiniteLossHook
from .safe_checkpoint import SafeCheckpointHook
from .weight_copy import WeightCopyHook
from .whole_model import WholeModelHook

__all__ = ['ExactResumeHook', 'FiniteLossHook', 'SafeCheckpointHook', 'WeightCopyHook', 'WholeModelHook']
