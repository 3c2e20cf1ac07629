"""What several tests share: the reference data beside the checkout, the golden weights, released-style checkpoints."""

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
SHARED = REPO.parent / 'shared'


def require_shared(part: str) -> Path:
    """The path of a part of the reference data; skips where it is absent."""
    path = SHARED / part
    if not path.exists():
        pytest.skip(f'reference data {part} is not beside this checkout')
    return path


def released_form() -> ModuleType:
    """The released sequence of operations, a module beside this checkout; skips where it is absent."""
    spec = importlib.util.spec_from_file_location('released_form', require_shared('reference/released_form.py'))
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
            folder = require_shared('golden')
            facts = json.loads((folder / f'efficientmod_{arch}.json').read_text())
            weights = {name: _golden_value(name, shape) for name, shape in facts['parameters'].items()}
            cache[arch] = weights, facts, dict(np.load(folder / f'efficientmod_{arch}.npz'))
        return cache[arch]

    return load
