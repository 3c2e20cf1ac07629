# Semantic FPN on the generated scenes from random weights, for a CPU: pyramid and head at half of the usual width.
_base_ = [
    '../../configs/_base_/backbones/efficientmod-xxs.py',
    '../../configs/_base_/models/semantic-fpn.py',
    'datasets/semantic.py',
    '../../configs/_base_/schedules/adamw_40k.py',
    '../../configs/_base_/default_runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    backbone=dict(type='mmefficientmod.EfficientMod', arch='xxs'),
    neck=dict(in_channels=_base_.channels, out_channels=128),
    decode_head=dict(in_channels=[128] * 4, channels=64, num_classes=9, norm_cfg=dict(type='BN')),
)

# LayerScale starts at 1e-4: without pretrained weights, the blocks need a large lr to come alive in so few iterations.
train_cfg = dict(max_iters=200, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=200, T_max=180),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=50, max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=8)
