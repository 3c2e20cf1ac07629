"""What several tests share: the golden weights and tensors, the released network, models of configs."""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmefficientmod.lite import allow_missing_operators

allow_missing_operators()  # MMSegmentation is imported in many tests; on mmcv-lite only so

ARCHS = ('xxs', 'xs', 's', 's_conv')
REPO = Path(__file__).parents[1]
DATA = REPO / 'tests/data'


def released_form() -> ModuleType:
    """The module ``tests/data/released_form.py``: the network as the authors released it."""
    spec = importlib.util.spec_from_file_location('released_form', DATA / 'released_form.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The network with parameters that all matter, as after training."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float(name.endswith('weight') or 'gamma' in name), 0.1)
    return model


def build_model(config: Config) -> torch.nn.Module:
    """The model of a config, built in its codebase's scope."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


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
