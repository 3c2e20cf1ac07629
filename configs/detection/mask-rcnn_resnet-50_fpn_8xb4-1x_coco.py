_base_ = [
    '../_base_/backbones/resnet-50.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
