_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    backbone=dict(
        type='mmpretrain.PoolFormer',
        arch='s12',
        out_indices=(0, 2, 4, 6),
        frozen_stages=-1,  # the default of 0 freezes the stem
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/poolformer/poolformer-s12_3rdparty_32xb128_in1k_20220414-f8d83051.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
