backbone = dict(
    type='mmefficientmod.TimmBackbone',
    model_name='focalnet_tiny_srf',
    norm_cfg=dict(type='mmpretrain.LN2d'),
    init_cfg=dict(type='Pretrained', checkpoint='timm://focalnet_tiny_srf.ms_in1k'),
)
channels = [96, 192, 384, 768]
