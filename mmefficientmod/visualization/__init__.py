"""Draws maps of the context, the value and their products in EfficientMod."""
