# 40,000 iterations, lr 2e-4 for 32 images a step (4 a GPU on 8 GPUs). `auto_scale_lr.enable=True` scales the lr to the
# real batch.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=40000, T_max=40000, eta_min_ratio=1e-6),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
