_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.EfficientMod',
        arch='s',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_s.pth'),
    ),
    neck=dict(in_channels=[32, 64, 144, 312]),
)
