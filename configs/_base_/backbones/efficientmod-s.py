backbone = dict(
    type='mmefficientmod.EfficientMod',
    arch='s',
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientmod_s.pth'),
)
channels = [32, 64, 144, 312]
