"""Child of MMEngine's model registry: every MM codebase finds ``mmefficientmod.NAME`` through it by its scope."""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmefficientmod', locations=['mmefficientmod.models'])
