"""Children of MMEngine's registries: every MM codebase finds ``mmefficientmod.NAME`` through them by its scope."""

from __future__ import annotations

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmefficientmod', locations=['mmefficientmod.training.hooks'])
MODEL_WRAPPERS = Registry(
    'model wrapper', parent=MMENGINE_MODEL_WRAPPERS, scope='mmefficientmod', locations=['mmefficientmod.training.cpu']
)
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmefficientmod', locations=['mmefficientmod.models'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmefficientmod',
    locations=['mmefficientmod.training.optim'],
)
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope='mmefficientmod', locations=['mmefficientmod.training.sharded']
)
