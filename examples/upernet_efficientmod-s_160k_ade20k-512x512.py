# UPerNet with EfficientMod-s on ADE20K.
# `mmseg::` finds the stock config on the original libraries; on the continuation, write the path of the file instead.
_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)
model = dict(
    pretrained=None,  # the ResNet's weights
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='s',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_s.pth'),
    ),
    decode_head=dict(in_channels=[32, 64, 144, 312]),
    auxiliary_head=dict(in_channels=144),
)
# AdamW as in the authors' Semantic FPN, 2e-4 for 32 images: half of it for the 16 of the stock config. Not tuned.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
