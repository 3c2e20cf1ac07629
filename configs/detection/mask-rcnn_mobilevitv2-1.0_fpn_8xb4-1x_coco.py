_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),  # as the weights were trained
    backbone=dict(
        type='mmefficientmod.TimmBackbone',
        model_name='mobilevitv2_100',
        init_cfg=dict(type='Pretrained', checkpoint='timm://mobilevitv2_100.cvnets_in1k'),
    ),
    neck=dict(in_channels=[128, 256, 384, 512]),
)
