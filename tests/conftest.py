"""The golden weights and tensors as a fixture; what tests share besides is in ``helpers.py``."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from helpers import DATA
from mmefficientmod.lite import allow_missing_operators

allow_missing_operators()  # MMSegmentation is imported in many tests; on mmcv-lite only so


@pytest.fixture(autouse=True)
def default_scope_as_before():
    """What a test builds in the scope of one codebase changes nothing for the next test."""
    scopes = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict = scopes


def _golden_value(name: str, shape: list) -> torch.Tensor:
    a = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('gamma_1'):
        a = 0.5 + 0.1 * a
    elif name.endswith('bias'):
        a = 0.1 * a
    elif len(shape) == 1:
        a = 1 + 0.1 * a
    else:
        a = a / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(a.astype(np.float32))


@pytest.fixture(scope='session')
def golden():
    """arch -> (released weights with classifier, stored facts, stored tensors)."""
    cache = {}

    def load(arch: str) -> tuple[dict, dict, dict]:
        if arch not in cache:
            facts = json.loads((DATA / f'golden/efficientmod_{arch}.json').read_text())
            weights = {name: _golden_value(name, shape) for name, shape in facts['parameters'].items()}
            cache[arch] = weights, facts, dict(np.load(DATA / f'golden/efficientmod_{arch}.npz'))
        return cache[arch]

    return load
