# EfficientMod-s-Conv as a classifier on the ImageNet recipe, spelled out: an ablation replaces the block of its arch.
_base_ = ['classifier.py', '../datasets/imagenet.py', '../schedules/adamw_300e.py', '../default_runtime_cls.py']
model = dict(
    backbone=dict(
        type='mmefficientmod.EfficientMod',
        arch=dict(
            embed_dims=(40, 80, 160, 344),
            depths=(4, 4, 12, 8),
            attn_depths=(0, 0, 0, 0),
            ratio=6,
            attn_ratios=(4, 4, 4, 4),
            drop_path_rate=0.02,
        ),
        out_indices=3,
    ),
    neck=dict(in_channels=344),
    head=dict(in_channels=344),
)
