_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.TimmBackbone',
        model_name='fasternet_t2',
        norm_cfg=dict(type='BN'),
        init_cfg=dict(type='Pretrained', checkpoint='timm://fasternet_t2.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
