_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.EfficientFormer',
        model_name='efficientformerv2_s2',
        img_size=800,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='timm://efficientformerv2_s2.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)
