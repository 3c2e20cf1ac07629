_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(backbone=dict(type='mmefficientmod.EdgeViT', arch='s'), neck=dict(in_channels=[48, 96, 240, 384]))
