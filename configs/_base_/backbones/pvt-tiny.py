backbone = dict(
    type='mmdet.PyramidVisionTransformer',
    num_layers=[2, 2, 2, 2],
    init_cfg=dict(type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth'),
)
channels = [64, 128, 320, 512]
