backbone = dict(
    type='mmefficientmod.EfficientMod',
    arch='xxs',
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_xxs.pth'),
)
channels = [32, 64, 128, 256]
