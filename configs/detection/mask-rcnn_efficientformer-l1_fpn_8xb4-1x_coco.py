_base_ = [
    '../_base_/backbones/efficientformer-l1.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(backbone=dict(_base_.backbone, img_size=800), neck=dict(in_channels=_base_.channels))
