backbone = dict(type='mmefficientmod.EdgeViT', arch='s')
channels = [48, 96, 240, 384]
