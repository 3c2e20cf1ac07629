backbone = dict(
    type='mmdet.ResNet',
    depth=50,
    frozen_stages=1,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
channels = [256, 512, 1024, 2048]
