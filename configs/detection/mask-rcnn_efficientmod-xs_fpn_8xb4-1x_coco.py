_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.EfficientMod',
        arch='xs',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_xs.pth'),
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)
