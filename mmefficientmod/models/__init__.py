"""The networks that the plugin registers."""
from .efficientmod import EfficientMod

__all__ = ['EfficientMod']
