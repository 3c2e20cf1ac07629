_base_ = [
    '../_base_/backbones/resnet-18.py',
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    backbone=dict(  # with the deep stem, as in PVT's segmentation recipe
        type='mmseg.ResNetV1c',
        depth=18,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet18_v1c'),
    ),
    neck=dict(in_channels=_base_.channels),
)
