backbone = dict(
    type='mmefficientmod.EfficientMod',
    arch='xs',
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_xs.pth'),
)
channels = [32, 64, 144, 288]
