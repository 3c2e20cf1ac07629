_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.EfficientFormer',
        model_name='efficientformerv2_s2',
        img_size=512,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='timm://efficientformerv2_s2.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)
