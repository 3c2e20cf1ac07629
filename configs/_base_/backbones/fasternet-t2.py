backbone = dict(
    type='mmefficientmod.TimmBackbone',
    model_name='fasternet_t2',
    norm_cfg=dict(type='BN'),
    init_cfg=dict(type='Pretrained', checkpoint='timm://fasternet_t2.in1k'),
)
channels = [96, 192, 384, 768]
