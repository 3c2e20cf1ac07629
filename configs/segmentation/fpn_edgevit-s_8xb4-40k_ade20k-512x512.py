_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(backbone=dict(type='mmefficientmod.EdgeViT', arch='s'), neck=dict(in_channels=[48, 96, 240, 384]))
