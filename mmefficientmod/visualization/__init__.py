"""Pictures of what EfficientMod computes."""
