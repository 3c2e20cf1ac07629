# Mask2Former with EfficientMod-s on ADE20K. The optimizer is Mask2Former's, not tuned for this backbone.
# It needs MMDetection installed together with MMSegmentation.
# `mmseg::` finds the stock config on the original libraries; on the continuation, write the path of the file instead.
_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='s',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_s.pth'),
    ),
    decode_head=dict(in_channels=[32, 64, 144, 312]),
)
