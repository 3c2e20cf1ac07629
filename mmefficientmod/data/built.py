"""Built data sets: those below whatever wraps them, their entries, their pipelines."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

WHOLE = 20000  # entries up to which a data set is looked at as a whole
SAMPLE = 2000  # entries of a larger one that are looked at


def find_built(dataset: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The data sets below a built one, without those that wrap others, each with its place in the config."""
    inner = getattr(dataset, 'datasets', None)
    if isinstance(inner, (list, tuple)):
        for number, each in enumerate(inner):
            yield from find_built(each, f'{place}.datasets.{number}')
    elif hasattr(getattr(dataset, 'dataset', None), '__getitem__'):
        sliced = type(dataset).__name__ == '_SlicedDataset'  # MMEngine's num_batch_per_epoch, no part of the config
        yield from find_built(dataset.dataset, place if sliced else f'{place}.dataset')
    else:
        yield place, dataset


def choose_indices(length: int, most: int | None = None) -> list[int]:
    """Which entries are looked at: all of a small data set, a sample of a larger one, always the same."""
    count = length if most is None and length <= WHOLE else min(length, most or SAMPLE)
    if count == length:
        return list(range(length))
    return sorted(random.Random(0).sample(range(length), count))


def find_transform(dataset: Any, name: str) -> Any | None:
    """The first transform of a data set's pipeline whose class has that name; None without one."""
    return next((each for each in transforms_of(dataset) if type(each).__name__ == name), None)


def has_own_classes(dataset: Any) -> bool:
    """Whether a data set has other classes than its class notes."""
    return list(dataset.metainfo['classes']) != list(type(dataset).METAINFO.get('classes', ()))


def transforms_of(dataset: Any) -> Sequence[Any]:
    """The transforms of a data set's pipeline, outermost only."""
    return getattr(getattr(dataset, 'pipeline', None), 'transforms', [])


def is_remote(dataset: Any) -> bool:
    """Whether images or labels come from elsewhere than local files."""
    parts = (dataset, *transforms_of(dataset))
    return any(getattr(part, 'backend_args', None) or getattr(part, 'file_client_args', None) for part in parts)


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Leaves Python's, NumPy's and torch's random numbers as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Budget:
    """Seconds, from now on, that a look may take."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def within(self, items: Sequence[Any], least: int = 2) -> Iterator[Any]:
        """The items until the time is over, ``least`` of them in any case."""
        for number, item in enumerate(items):
            if number >= least and time.monotonic() > self.end:
                return
            yield item


def apply(transforms: Sequence[Any], entry: Mapping) -> dict | None:
    """The result of some transforms on a copy of an entry; the transforms are copies, too: some remember."""
    results: Any = copy.deepcopy(dict(entry))
    with random_numbers_kept():
        for transform in copy.deepcopy(list(transforms)):
            results = transform(results)
            if results is None:
                return None
    return results
