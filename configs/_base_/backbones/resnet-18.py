backbone = dict(
    type='mmdet.ResNet',
    depth=18,
    frozen_stages=1,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
)
channels = [64, 128, 256, 512]
