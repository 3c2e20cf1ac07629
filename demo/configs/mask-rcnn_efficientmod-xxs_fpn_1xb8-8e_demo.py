# Mask R-CNN on the generated scenes, for a CPU: small pyramid and heads with BN, few proposals, small anchors.
# Its backbone starts from the demo's Semantic FPN. The environment variable DEMO_ROOT replaces work_dirs/demo.
_base_ = [
    '../../configs/_base_/backbones/efficientmod-xxs.py',
    '../../configs/_base_/models/mask-rcnn_fpn.py',
    'datasets/instance.py',
    '../../configs/_base_/schedules/adamw_1x.py',
    '../../configs/_base_/default_runtime_det.py',
]
norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$DEMO_ROOT:work_dirs/demo}}/segmentation/train/iter_200.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=_base_.channels, out_channels=96, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=96, feat_channels=96, anchor_generator=dict(scales=[2.5])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96, finest_scale=28),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=96,
            conv_out_channels=64,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
            num_classes=6,
        ),
        mask_roi_extractor=dict(out_channels=96, finest_scale=28),
        mask_head=dict(in_channels=96, conv_out_channels=64, num_convs=2, norm_cfg=norm_cfg, num_classes=6),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=96))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(max_per_img=30)),
)

train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, T_max=8, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=8)
