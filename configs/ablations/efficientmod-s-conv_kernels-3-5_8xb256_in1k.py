_base_ = '../_base_/models/s-conv_variant.py'
model = dict(backbone=dict(arch=dict(block=dict(type='mmefficientmod.ModulationVariant', kernel_sizes=(3, 5)))))
