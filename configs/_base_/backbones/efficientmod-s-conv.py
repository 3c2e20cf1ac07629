backbone = dict(
    type='mmefficientmod.EfficientMod',
    arch='s_conv',
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_s_conv.pth'),
)
channels = [40, 80, 160, 344]
