_base_ = [
    '../_base_/backbones/efficientmod-s-conv.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/default_runtime_cls.py',
]
model = dict(
    backbone=dict(_base_.backbone, out_indices=3, init_cfg=None),
    neck=dict(in_channels=_base_.channels[-1]),
    head=dict(in_channels=_base_.channels[-1]),
)
