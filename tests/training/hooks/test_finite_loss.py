"""What FiniteLossHook looks at in a checkpoint; test_resume.py stops a real training with it."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmefficientmod.training.hooks import FiniteLossHook


class Model(BaseModel):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


@pytest.mark.parametrize('extra', [dict(seen=3), float('nan'), None])
def test_of_a_checkpoint_only_tensors_are_judged(extra, tmp_path):
    """A module's extra state may be anything: it is saved as it is, and hides no NaN in a weight."""
    runner = Runner(Model(), str(tmp_path))
    state = {'counter._extra_state': extra, 'weight': torch.ones(2), 'steps': torch.tensor(3)}
    before = copy.deepcopy(state)
    FiniteLossHook().before_save_checkpoint(runner, dict(state_dict=state))
    assert list(state) == list(before) and torch.equal(state['weight'], before['weight'])
    assert state['counter._extra_state'] is extra
    state['weight'][1] = float('inf')
    with pytest.raises(SystemExit, match=r'^error: 1 of the weights hold NaN or Inf .*, weight is the first; '):
        FiniteLossHook().before_save_checkpoint(runner, dict(state_dict=state))
