backbone = dict(
    type='mmdet.PyramidVisionTransformerV2',
    embed_dims=64,
    num_layers=[2, 2, 2, 2],
    init_cfg=dict(type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b1.pth'),
)
channels = [64, 128, 320, 512]
