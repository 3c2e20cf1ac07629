backbone = dict(
    type='mmefficientmod.EfficientFormer',
    model_name='efficientformer_l1',
    norm_cfg=dict(type='GN', num_groups=1),
    init_cfg=dict(type='Pretrained', checkpoint='timm://efficientformer_l1.snap_dist_in1k'),
)
channels = [48, 96, 224, 448]
