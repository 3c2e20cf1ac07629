_base_ = '../_base_/models/s-conv_variant.py'
model = dict(backbone=dict(arch=dict(block='mmefficientmod.SeparateMlpBlock')))
