_base_ = [
    '../_base_/backbones/resnet-50.py',
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
