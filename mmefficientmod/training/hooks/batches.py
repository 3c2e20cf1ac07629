"""Makes the random numbers of a batch follow from its position in the training, whichever process loads it."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

ITERATION, BATCH, EPOCH = range(3)  # three independent streams of seeds


def seed_all(*place: int) -> None:
    """Seeds Python, NumPy, torch and this process's device from integers that name a position in a training."""
    words = np.random.SeedSequence(place).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1:3])
    seed = int(words[3])
    if get_device() in ('cpu', 'cuda'):  # torch.manual_seed() formats a stack for each device without a driver
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # never in a forked worker
            torch.cuda.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class PlacedBatch(list):
    """The indices of one batch, and the position that its random numbers follow from."""

    def __init__(self, indices: Iterable, place: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.place = place


class PlacedBatches:
    """A batch sampler around another one, of which every attribute can be read here.

    Args:
        batches (Iterable): The batch sampler. It gives the same batches again if it is built again.
        seed (int): The run's seed.
        rank (int): Number of this process.

    Attributes:
        epoch (int): Number of the next pass over the data. It grows by itself.
        skip (int): Batches that the next pass leaves out. They are counted, not loaded.
    """

    def __init__(self, batches: Any, seed: int, rank: int) -> None:
        self.inner = batches
        self.seed, self.rank = seed, rank
        self.epoch = self.skip = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'inner':
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[PlacedBatch]:
        """One pass. Nothing happens before its first batch is asked for: torch makes some iterators in vain."""
        skip, self.skip = self.skip, 0
        while True:
            set_epoch(self.inner, self.epoch)
            batches = iter(self.inner)
            skipped = sum(1 for _ in itertools.islice(batches, skip))
            if skipped == skip or not skipped:  # without any batch there is nothing to skip
                break
            skip -= skipped  # the data set is shorter than `skip`: continue in the next epoch
            self.epoch += 1
        epoch, self.epoch = self.epoch, self.epoch + 1
        for number, batch in enumerate(batches, skip):
            yield PlacedBatch(batch, (self.seed, self.rank, BATCH, epoch, number))


def set_epoch(batches: Any, epoch: int) -> None:
    """Tells the sampler below a batch sampler which pass comes next, as MMEngine's loops do."""
    sampler: Any = getattr(batches, 'sampler', None)
    if hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)


class PlacedFetch:
    """What a data loader calls to get the samples of a batch: seeds from the batch's place, then asks the data set."""

    def __init__(self, dataset: Any, fetch: Callable | None) -> None:
        self.dataset, self.fetch = dataset, fetch

    def __call__(self, batch: Sequence) -> list:
        if isinstance(batch, PlacedBatch):
            seed_all(*batch.place)
        return self.fetch(batch) if self.fetch else [self.dataset[index] for index in batch]


def place_batches(loader: DataLoader, settings: object, seed: int, sampler_seed: int) -> PlacedBatches | None:
    """Makes a data loader load batches whose random numbers follow from their place.

    Its samplers are built again, as they were at the start of the training: a loop may have drawn from them already.

    Args:
        loader (DataLoader): Changed in place.
        settings (dict or DataLoader): What the runner was given.
        seed (int): Of the data's random numbers.
        sampler_seed (int): Of the order of the data, alike in all processes.

    Returns:
        PlacedBatches: None, and nothing is changed, for data that come as a stream or without batches.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    sampler, batches = _build_samplers(loader, settings, sampler_seed)
    placed = PlacedBatches(batches, seed, get_rank())
    # DataLoader refuses new samplers, because batch_size and the like may not fit them: these are the same ones again.
    vars(loader).update(batch_sampler=placed, sampler=sampler)
    loader.generator = torch.Generator()  # else each new iterator draws from the training's random numbers
    loader._iterator = None  # persistent workers know the data set as it was
    fetch = getattr(loader.dataset, '__getitems__', None)
    if not isinstance(fetch, PlacedFetch):
        loader.dataset.__getitems__ = PlacedFetch(loader.dataset, fetch)
    return placed


def _build_samplers(loader: DataLoader, settings: object, seed: int) -> tuple[Any, Any]:
    """The sampler and the batch sampler of a data loader, built again from its settings as MMEngine does it."""
    old = getattr(loader.batch_sampler, 'inner', loader.batch_sampler)
    if not isinstance(settings, Mapping) or not isinstance(settings.get('sampler'), Mapping):
        if hasattr(loader.sampler, '_indices_of_rank'):  # InfiniteSampler's numbers end with their first reader
            loader.sampler.indices = loader.sampler._indices_of_rank()
        return loader.sampler, old
    defaults = dict(dataset=loader.dataset, seed=seed)
    sampler = DATA_SAMPLERS.build(copy.deepcopy(settings['sampler']), default_args=defaults)
    outer = settings.get('batch_sampler')
    if outer is None:
        return sampler, BatchSampler(sampler, old.batch_size, old.drop_last)
    defaults = dict(sampler=sampler, batch_size=settings['batch_size'])
    return loader.sampler, DATA_SAMPLERS.build(copy.deepcopy(outer), default_args=defaults)
