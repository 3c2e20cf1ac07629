_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.TimmBackbone',
        model_name='repvit_m1_1',
        init_cfg=dict(type='Pretrained', checkpoint='timm://repvit_m1_1.dist_300e_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
