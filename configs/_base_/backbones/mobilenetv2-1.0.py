backbone = dict(
    type='mmefficientmod.TimmBackbone',
    model_name='mobilenetv2_100',
    init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv2_100.ra_in1k'),
)
channels = [24, 32, 96, 320]
