_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    backbone=dict(
        type='mmefficientmod.EfficientFormer',
        model_name='efficientformer_l1',
        img_size=800,
        norm_cfg=dict(type='GN', num_groups=1),
        init_cfg=dict(type='Pretrained', checkpoint='timm://efficientformer_l1.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[48, 96, 224, 448]),
)
