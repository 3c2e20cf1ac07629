backbone = dict(
    type='mmefficientmod.TimmBackbone',
    model_name='mobilevitv2_100',
    init_cfg=dict(type='Pretrained', checkpoint='timm://mobilevitv2_100.cvnets_in1k'),
)
channels = [128, 256, 384, 512]
normalisation = dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0])  # as the weights were trained
