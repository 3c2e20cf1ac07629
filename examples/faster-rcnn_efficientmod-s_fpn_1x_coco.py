# Faster R-CNN with EfficientMod-s on COCO.
# `mmdet::` finds the stock config on the original libraries; on the continuation, write the path of the file instead.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='s',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_s.pth'),
    ),
    neck=dict(in_channels=[32, 64, 144, 312]),
)
# AdamW as in the authors' Mask R-CNN, 2e-4 for 32 images: half of it for the 16 of the stock config. Not tuned.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05))
