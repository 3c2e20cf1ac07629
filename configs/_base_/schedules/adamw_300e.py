# DeiT's recipe: 300 epochs, lr 4e-3 for 2048 images a step (256 a GPU on 8 GPUs), averaged weights (EMA, decay 0.9998),
# mixed precision. `auto_scale_lr.enable=True` scales the lr to the real batch.
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),  # as timm, for all vectors
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 4e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300, T_max=295),
]
auto_scale_lr = dict(enable=False, base_batch_size=2048)
custom_hooks = [
    # which copy of a checkpoint's weights to load: 'plain', 'ema', or None, the one that the file names first
    dict(type='mmefficientmod.WeightCopyHook', load=None, priority='HIGH'),
    dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL'),
]
