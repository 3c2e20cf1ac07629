_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
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
