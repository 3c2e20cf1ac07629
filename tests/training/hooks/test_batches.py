"""Loaded data follow from their place: not from the number of workers, nor from what was loaded before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from torch.utils.data import Dataset

from interpreter import run_python
from mmefficientmod.training.hooks.batches import place_batches, seed_all

SAMPLERS = {
    'infinite': dict(type='InfiniteSampler', shuffle=True),
    'finite': dict(type='DefaultSampler', shuffle=True),
    'in order': dict(type='DefaultSampler', shuffle=False),
}


class Noise(Dataset):
    """Seven samples: their number, and numbers drawn by Python, NumPy and torch."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> list[float]:
        return [float(index), random.random(), np.random.rand(), torch.rand(()).item()]


def stream(sampler: str, workers: int, skip: int, length: int, seed: int = 3) -> list:
    """Batches of a loader that starts behind ``skip`` batches and is restarted at the end of the data."""
    settings = dict(
        dataset=Noise(),
        sampler=SAMPLERS[sampler],
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dict(type='pseudo_collate'),
    )
    loader = Runner.build_dataloader(settings, seed=random.randrange(1000))  # the config's own seed is not used
    next(iter(loader))  # as MMEngine's loop does before a checkpoint is read
    placed = place_batches(loader, settings, seed, seed)
    placed.skip = skip
    found: list = []
    while len(found) < length:
        for batch in loader:
            found.append([[float(value) for value in values] for values in batch])
            if len(found) == length:
                break
    return found


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('skip', [1, 4, 9])  # 4 batches are one pass over the data
def test_the_same_batches_behind_any_place(sampler, workers, skip):
    whole = stream(sampler, 0, 0, 14)
    assert stream(sampler, workers, skip, 14 - skip) == whole[skip:]


def test_other_seeds_and_places_give_other_numbers():
    assert stream('finite', 0, 0, 4) != stream('finite', 0, 0, 4, seed=4)
    drawn = {value for batch in stream('in order', 0, 0, 8) for values in zip(*batch) for value in values}
    assert len(drawn) >= 3 * 14, 'no two samples have a random number in common'


def test_seeding_covers_every_generator_and_is_the_place_alone():
    def draw(*place: int) -> list[float]:
        seed_all(*place)
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    assert draw(3, 0, 1) == draw(3, 0, 1)
    assert all(one != other for one, other in zip(draw(3, 0, 1), draw(3, 1, 0)))


# In a process of its own: MMEngine's runner sets up the whole process.
RUNNER = """
import sys

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

class Numbers(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.tensor([float(index)])

class Mean(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.weight * inputs.mean())

settings = dict(
    dataset=Numbers(),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_size=2,
    num_workers=1,
    collate_fn=dict(type='default_collate'),
)
built = sys.argv[2] == 'built'
model = Mean()
model.data_preprocessor.forward = lambda data, training: dict(inputs=data)
runner = Runner(
    model=model,
    work_dir=sys.argv[1],
    train_dataloader=Runner.build_dataloader(settings) if built else settings,
    train_cfg=dict(by_epoch=False, max_iters=6),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    custom_hooks=[dict(type='mmefficientmod.ExactResumeHook')],
    randomness=dict(seed=0),
)
runner.train()
assert runner.iter == 6
"""


@pytest.mark.parametrize('loader', ['built', 'settings'])
def test_a_runner_without_a_config_trains(loader, tmp_path):
    """Its data loader is built already, or stands in the runner alone; the loop has begun with an endless sampler."""
    done = run_python('-c', RUNNER, tmp_path, loader, timeout=300)
    assert done.returncode == 0, done.stderr
