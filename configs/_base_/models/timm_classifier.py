# Any classifier of timm with its own head, `model_name`, trained by the recipe of EfficientMod's classifier.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmefficientmod.TimmLogits', model_name='efficientnet_b0', init_cfg=None),
    head=dict(
        type='ClsHead',
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
