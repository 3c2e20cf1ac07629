_base_ = [
    '../_base_/backbones/efficientmod-s-conv.py',
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))

# As released: only this arch decays to zero.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=40000, T_max=40000, eta_min=0),
]
