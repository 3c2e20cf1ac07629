"""What FiniteLossHook looks at in a checkpoint."""

from __future__ import annotations

import torch

from mmefficientmod.training.hooks import FiniteLossHook


def test_what_is_no_tensor_is_saved_as_it_is():
    """A module's extra state may be anything."""
    state = {'weight': torch.ones(2), 'counter._extra_state': dict(seen=3)}
    FiniteLossHook().before_save_checkpoint(None, dict(state_dict=state))
