# RTMDet-s with EfficientMod-s on COCO. The optimizer is RTMDet's, not tuned for this backbone.
# `mmdet::` finds the stock config on the original libraries; on the continuation, write the path of the file instead.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)
model = dict(
    # RTMDet's own backbone takes BGR; the released weights of EfficientMod take RGB
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='s',
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_s.pth'),
    ),
    neck=dict(in_channels=[64, 144, 312]),
)
