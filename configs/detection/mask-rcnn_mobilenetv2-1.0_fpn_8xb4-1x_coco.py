_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.TimmBackbone',
        model_name='mobilenetv2_100',
        init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv2_100.ra_in1k'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
