# EfficientMod's classifier: LayerNorm on the last stage, global average pooling, one linear layer. A config adds
# `backbone` and the channels of its last stage. Mixup, CutMix and label smoothing as in DeiT.
model = dict(
    type='mmefficientmod.EfficientModClassifier',
    neck=dict(type='mmefficientmod.NormPooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
