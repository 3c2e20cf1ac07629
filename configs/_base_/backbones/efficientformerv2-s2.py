backbone = dict(
    type='mmefficientmod.EfficientFormer',
    model_name='efficientformerv2_s2',
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='timm://efficientformerv2_s2.snap_dist_in1k'),
)
channels = [32, 64, 144, 288]
