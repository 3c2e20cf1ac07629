backbone = dict(
    type='mmefficientmod.TimmBackbone',
    model_name='repvit_m1_5',
    init_cfg=dict(type='Pretrained', checkpoint='timm://repvit_m1_5.dist_300e_in1k'),
)
channels = [64, 128, 256, 512]
